"""torch's own distributed training, without any other framework."""
