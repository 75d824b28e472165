"""One codec per device protocol."""
