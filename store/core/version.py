"""The version of actlake, said once."""

__version__ = "0.1.0"
