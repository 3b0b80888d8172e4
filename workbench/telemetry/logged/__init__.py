"""What the training script logged, as readers see it."""
