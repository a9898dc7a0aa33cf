"""One training stage: `run` on each rank, `resume` and `finish` also in the launcher, `by_hand` for a person."""
