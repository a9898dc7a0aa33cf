"""The plan, how a rule finds its stage in it, and the rules that all others are made from. The only Python of the workflow."""

from post_training.workflow.session import Session

SESSION = Session(workflow, config)
PLAN = SESSION.lookup
inputs = PLAN.inputs
passed = PLAN.passed

# The interpreter that runs Snakemake runs the jobs, whether or not its environment is activated.
shell.prefix(SESSION.shell_prefix)


pathvars:
    outputs=str(PLAN.graph.base),


wildcard_constraints:
    stage="[^/]+",
    run="[^/]+",


rule stage:
    """The body of every stage; never asked for itself. A rule made from it says what goes in and out."""
    output:
        "<outputs>/never/{stage}/manifest.json",
    log:
        "<outputs>/logs/never/{stage}.log",
    benchmark:
        "<outputs>/logs/benchmarks/{stage}.tsv"
    conda:
        "../../envs/cpu.yaml"
    params:
        task=PLAN.task,
    shell:
        "python -m post_training stage {params.task:q} >> {log:q} 2>&1"


# A rule is made from one of these three, by where it runs (`place` in core/stages.py), or from `stage` with `localrule: True`
# where snakemake is typed: what needs the network, or takes seconds. `use rule` does not pass that directive on.


use rule stage as cpu_stage with:
    """A job of slurm.cpu."""
    resources:
        **PLAN.resources("cpu"),


use rule stage as gpu_stage with:
    """A job with one GPU, or as many as its model needs."""
    resources:
        **PLAN.resources("gpu"),


use rule stage as ranks_stage with:
    """One rank a device on every node; on this machine all of it, since two trainings must not share its devices."""
    threads: PLAN.all_threads
    resources:
        **PLAN.resources("ranks"),
