"""What happens to gradients between backward and update: algorithms that send less of them."""
