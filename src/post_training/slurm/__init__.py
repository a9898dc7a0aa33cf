"""Rules on Slurm: where a job runs, its script, and how it resumes after any end.

    placement   configuration -> resources of a rule -> options of `sbatch`
    job         those options and the rule's command -> `job.sh`
    srun        the command and the environment of a training job's ranks
    cluster     squeue, sacct, sbatch, scontrol

In the job: `attempt` starts the rule's command, records why it ended, and requeues the job. Records are in
`run_dir/attempts.py`.

In the process that a user started:

    check       whether the cluster would take the jobs, before one is queued
    executor    submits stages, follows them, submits them again
    follow      how a job ended -> done, submitted again, or failed
"""
