"""Pipeline stages with ``torch.distributed.pipelining``: plugin ``hybrid`` of framework ``torch``."""
