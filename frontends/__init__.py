"""Guest-side halves of the split drivers, one folder per device."""
