"""The XenStore daemon: the store (`core.py` and what it is made of) and its clients (`daemon.py`)."""
