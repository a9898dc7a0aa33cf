"""`inspect` and `token-stats`: examples from their source rows to their tokens, and counts for each dataset."""
