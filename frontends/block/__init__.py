"""blkfront: a disk of this domain, served by a backend in another (public/io/blkif.h)."""
