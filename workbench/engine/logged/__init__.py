"""What the training script logs with ``log``: numbers, images and texts."""
