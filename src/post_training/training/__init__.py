"""What one rank of a training does: arguments, trainer, checks of each step, measurements, checkpoints."""
