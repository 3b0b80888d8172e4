"""What frameworks that split states and gradients over ranks have in common."""
