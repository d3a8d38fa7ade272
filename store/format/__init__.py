"""The format of the lake: paths, records, Zarr metadata, shards and Parquet files, each checked before use."""
