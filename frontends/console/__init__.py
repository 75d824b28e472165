"""The console of this domain, served by the console daemon of dom0 (public/io/console.h)."""
