"""Megatron-Core's parallelism."""
