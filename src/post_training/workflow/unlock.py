"""Release of the lock that a killed Snakemake leaves in its working directory.

Snakemake keeps no process with its lock, so after `kill -9`, a lost session or a crash of the machine every
call asks for `--unlock`, whether or not another one still runs. A call records itself as the owner of
`.snakemake/`, and a later one removes the lock when that owner is gone without having ended in order. Two live
calls are kept apart stage by stage: run_dir/lock.py, slurm/executor.py.
"""

import atexit
import contextlib
import io
import sys
from pathlib import Path

from post_training.run_dir.lock import LockedError, last_owner, take


def release_stale_lock(folder: Path = Path(".snakemake")) -> None:
    """Called when a user starts Snakemake, before it looks for its lock; prints what is removed."""
    locks = [path for path in folder.glob("locks/*") if path.is_file()]
    try:
        holder = last_owner(folder)
        if locks and (holder is None or holder.released):
            return  # of a call that is not known: Snakemake says what to do
        with contextlib.redirect_stdout(io.StringIO()):
            mine = take(folder, patience_seconds=0, alone=True)
    except LockedError:
        return  # in use
    atexit.register(mine.release)
    if holder and locks:
        print(f"snakemake (process {holder.pid}) of an earlier call is gone; its lock is released", file=sys.stderr)
    for path in locks:
        path.unlink(missing_ok=True)
