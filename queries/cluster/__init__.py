"""The same jobs on the workers of a dask scheduler."""
