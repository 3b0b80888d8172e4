"""A network emulated around the collectives of a training: ``--network``."""
