"""Tables that replay late blocks under a condition."""
