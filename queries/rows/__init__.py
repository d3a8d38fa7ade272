"""The rows: one .sql file each, published figures beside them, and what a row finds."""
