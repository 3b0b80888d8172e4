"""Plans before anything is trained: what each would take on these ranks, which to choose, and trying them."""
