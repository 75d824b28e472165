"""blkback: serves virtual block devices of other domains from stores (public/io/blkif.h)."""
