"""The explorer in a browser: what its pages read of a lake, written as a static site or handed out by a local server."""
