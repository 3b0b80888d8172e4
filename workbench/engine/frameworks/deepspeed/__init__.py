"""DeepSpeed: its ZeRO stages, trained as one process would."""
