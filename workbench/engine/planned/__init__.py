"""Describes the user's model to the planner, measures this machine, and reads what ranks hold."""
