"""xenconsoled's job: takes what domains print, keeps it, and lets people attach (public/io/console.h)."""
