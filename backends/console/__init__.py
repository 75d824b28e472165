"""The console daemon of dom0: what xenconsoled does on a real Xen."""
