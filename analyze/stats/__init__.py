"""Intervals over prompts, ranks and effects of doses."""
