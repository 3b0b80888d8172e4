"""What plans can do."""
