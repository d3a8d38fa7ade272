"""Tables: which files count, imported ones, and the SQL connection that reads them."""
