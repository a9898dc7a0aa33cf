"""Starts the ranks of a training job, here or with srun, and writes its manifest."""
