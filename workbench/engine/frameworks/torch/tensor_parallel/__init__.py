"""Tensor parallelism with DTensor: which layers are cut how, and what each rank then has of them."""
