"""Service-side halves of the split drivers, the plug-in contract and the registry."""
