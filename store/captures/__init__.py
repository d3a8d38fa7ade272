"""Captures: written shard by shard, sealed, read, verified and cited."""
