"""What a lake holds beside captures and tables: streams, models, weights, probes, directions, texts, verdicts."""
