"""The plan, and the rule that all others are made from. The only Python of the workflow."""

from post_training.workflow.session import Session

SESSION = Session(workflow, config)
PLAN = SESSION.lookup
inputs = PLAN.inputs

# The interpreter that runs Snakemake runs the jobs, whether or not its environment is activated.
shell.prefix(SESSION.shell_prefix)


pathvars:
    outputs=str(PLAN.graph.base),


wildcard_constraints:
    stage="[^/]+",
    run="[^/]+",


rule stage:
    """The body of every stage; never asked for itself. A rule made from it says what goes in and out.

    Where its jobs run is in core/stages.py. What is `local` there needs the network, or takes seconds, and says `localrule: True`:
    `use rule` does not pass that on.
    """
    output:
        "<outputs>/never/{stage}/manifest.json",
    log:
        "<outputs>/logs/never/{stage}.log",
    benchmark:
        "<outputs>/logs/benchmarks/{stage}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: PLAN.threads
    resources:
        **PLAN.resources,
    params:
        task=PLAN.task,
    shell:
        "python -m post_training stage {params.task:q} >> {log:q} 2>&1"
