"""Lenses: a residual through the head, raw or tuned, without holding tokens x vocabulary."""
