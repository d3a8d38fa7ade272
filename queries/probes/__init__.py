"""Probes of the tuned lens: which a question uses, and the training of those that are missing."""
