"""What the Snakefile asks and what it does at the start and end of a call."""
