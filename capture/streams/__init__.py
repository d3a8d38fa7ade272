"""From prompts to token streams, and the capture of a pair on them."""
