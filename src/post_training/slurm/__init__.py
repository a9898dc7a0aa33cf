"""Rules on Slurm: where a job runs, what it is, how it goes on after whatever happens to it.

placement   configuration -> resources of a rule -> options of `sbatch`          pure
job         those options and the rule's command -> `job.sh`                     pure
srun        the command and the environment of a training job's ranks            pure
cluster     squeue, sacct, sbatch, scontrol: everything that asks Slurm
record      what a run directory remembers: segments, failures, who runs now
segment     the process in the job: starts the rule's command, says why it ended
executor    the process that a person started: submits, follows, submits again
check       whether the cluster would take the jobs, before one is queued
"""
