"""All that runs a model: loading, streams, capture, edits and replays."""
