"""Moving a lake or a part of it: what is selected, planned and copied."""
