"""Questions: rows, the tables they need, what computes those, and the answers."""
