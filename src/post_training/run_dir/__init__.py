"""One run's directory on disk, with the standard library only: launcher, ranks, Slurm, status and report read it here."""
