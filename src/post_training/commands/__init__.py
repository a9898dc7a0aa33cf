"""The commands of `python -m post_training`."""
