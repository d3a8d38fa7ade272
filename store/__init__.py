"""The lake on disk: what is written, how it is checked, and how it moves."""
