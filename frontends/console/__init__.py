"""hvc: this domain's console, served by the console daemon in dom0 (public/io/console.h)."""
