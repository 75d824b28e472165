"""What `make bench` measures: ratios within one run; absolute figures are for the same machine only."""
