"""Rules on Slurm: where a job runs, what it is, how it goes on after whatever happens to it.

    placement   configuration -> resources of a rule -> options of `sbatch`          pure
    job         those options and the rule's command -> `job.sh`                     pure
    srun        the command and the environment of a training job's ranks            pure
    cluster     squeue, sacct, sbatch, scontrol: everything that asks Slurm
    record      what a run directory remembers: segments, failures, who runs now

In the job:

    segment     starts the rule's command, says why it ended, has it started again
    fence       a rank ends itself when its job no longer owns the run
    scratch     compile caches on the node's own disk

In the process that a person started:

    check       whether the cluster would take the jobs, before one is queued
    executor    submits stages, follows them, submits them again
    follow      how a job ended -> done, submitted again, or an end
"""
