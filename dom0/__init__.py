"""What the service domain does besides devices: XenStore, the domain builder, scenarios, the command line."""
