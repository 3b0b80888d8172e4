"""Runs the cases: the cell under every plan, and the same cell in a plain loop of one process."""
