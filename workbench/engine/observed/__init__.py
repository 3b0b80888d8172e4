"""A training loop that somebody else wrote, observed: what it does becomes a run like any other."""
