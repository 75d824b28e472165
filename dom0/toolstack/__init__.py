"""The toolstack in dom0: it builds domains by hypercalls, describes them in XenStore, and takes them down."""
