"""From raw files to the rows that a trainer memory-maps."""
