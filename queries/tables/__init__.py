"""Tables from stored activations alone, and the probes and directions they use."""
