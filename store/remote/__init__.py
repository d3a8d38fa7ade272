"""Lakes that are elsewhere: files by name over any protocol, a cache of small files, a read-only server."""
