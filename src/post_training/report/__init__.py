"""Results of finished runs: a summary on the terminal, a self-contained HTML page for each run, and one that compares runs."""
