"""Pipelines of Colossal-AI: their schedules, how they are driven, and when what they do is told."""
