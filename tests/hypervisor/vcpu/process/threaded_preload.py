"""A module that starts a thread while it is imported, as some numerical libraries do."""

import threading

threading.Thread(target=threading.Event().wait, daemon=True).start()
