"""Kernel images as files: bzImages, ELF, and what their Xen notes say. Nothing here knows of a domain.

All bytes of an image are untrusted. Whatever is wrong with one comes out as BadImage, within bounded time and
memory (XSA-25, XSA-55, CVE-2011-1583).
"""
