"""One pass over stored captures, however many tables are computed in it."""
