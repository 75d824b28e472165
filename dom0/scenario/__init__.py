"""Scenarios: what a YAML file may say, how it is read, and what it expects of the run."""
