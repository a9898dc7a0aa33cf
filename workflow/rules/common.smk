"""The plan, and how a rule finds its stage in it. The only Python of the workflow."""

from post_training.workflow.session import WorkflowPlan

WORKFLOW = WorkflowPlan(workflow, config)
GRAPH = WORKFLOW.graph
manifests = WORKFLOW.manifests
finish_run = WORKFLOW.finish_run

# The interpreter that runs Snakemake runs the jobs, whether or not its environment is activated.
shell.prefix(WORKFLOW.shell_prefix)


pathvars:
    outputs=str(GRAPH.base),


wildcard_constraints:
    stage="[^/]+",
    run="[^/]+",
