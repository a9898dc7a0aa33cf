"""What a person types: `python -m post_training COMMAND`."""
