"""Checkpoints from files: configs, tokenizers, templates, weights, and why one is refused."""
