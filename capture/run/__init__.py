"""One teacher-forced forward per batch, into shards of a capture."""
