"""How a vCPU executes."""
