"""FSDP2: ``fully_shard`` per block and for the rest of the model."""
