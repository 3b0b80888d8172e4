"""The monitor: what is observed of a training while it runs."""
