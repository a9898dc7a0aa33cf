"""The plan, and how a rule finds its stage in it. The only Python of the workflow."""

from post_training.workflow import WorkflowPlan

WORKFLOW = WorkflowPlan(workflow, config)
PLAN = WORKFLOW.plan
manifests = WORKFLOW.manifests
finish_run = WORKFLOW.finish_run

# The interpreter that runs Snakemake runs the jobs, whether or not its environment is activated.
shell.prefix(WORKFLOW.shell_prefix)


pathvars:
    outputs=str(PLAN.base),


wildcard_constraints:
    stage="[^/]+",
    run="[^/]+",
