"""What everything stands on: errors, durable files, the catalog, names of tables and variables."""
