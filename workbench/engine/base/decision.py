"""What the guard against non-finite numbers decides about a step, before the optimizer updates the weights."""

from __future__ import annotations

#: update; leave the update out; leave it out and end the run
GO, SKIP, STOP = "go", "skip", "stop"
