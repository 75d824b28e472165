"""Ready-made Python guest programs."""
