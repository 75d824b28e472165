"""The domain-local part of the core, for paravirtualized guests that bring their own page tables.

It runs in the process that executes the domain, and needs nothing but that domain's state: memory by machine
frame number, the registers of the vCPU that executes, time. Sans-IO like the rest of the core.
"""
