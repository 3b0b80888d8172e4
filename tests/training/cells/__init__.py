"""One file per case: a cell that people write, and what one process makes of it."""
