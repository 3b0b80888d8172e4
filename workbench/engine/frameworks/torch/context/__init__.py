"""torch with sequences that are shared over ranks (context parallelism)."""
