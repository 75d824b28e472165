"""The Python guest kernel that runs in every Python domain, dom0 included.

It never imports the hypervisor: whoever runs a domain hands it a hypercall entry, memory and an upcall.
"""
