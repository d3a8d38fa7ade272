"""Edits of a forward, in code or in words, and replays of late blocks from stored residuals."""
