"""Rows of captures in shuffled batches, for training: which rows, in what order, and how they are read."""
