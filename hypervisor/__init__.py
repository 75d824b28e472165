"""The trusted core: Xen's public ABI, machine memory, domains, event channels and grant tables.

It knows no device. The core changes state and returns; time, upcall delivery and output are handed in.
"""
