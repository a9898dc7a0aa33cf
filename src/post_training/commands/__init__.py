"""The commands of `python -m post_training`, and the process of a rank."""
