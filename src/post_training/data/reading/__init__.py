"""Source files to Python rows: formats, compression, line numbers."""
