"""A loaded decoder: its blocks, branches and head, found by what they do."""
