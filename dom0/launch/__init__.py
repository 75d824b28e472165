"""Runs a scenario: the machine, dom0 and its services, the guests in their order, and the closing report."""
