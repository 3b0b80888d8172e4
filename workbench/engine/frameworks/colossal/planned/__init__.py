"""What the planner asks of Colossal-AI, on a rank."""
