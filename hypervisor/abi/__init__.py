"""Xen's public ABI as data: one module per public header of Xen 4.17, with Xen's names and values.

`layout` turns an annotated class into a C struct; every other module declares constants and structs with it.
The package imports nothing of ours, so that kernels, drivers and tools can share it with the hypervisor.
"""
