"""Ring protocols over shared pages, as Xen's public/io headers define them.

Pure code: no I/O, nothing awaits, and nothing of the other packages is imported.
"""
