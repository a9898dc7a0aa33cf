"""What can be known before a GPU is asked for, from the manifests of the data stages.

REQUIRED INPUTS: every stage's mix, and the model that the pipeline starts from
OUTPUTS:         <outputs>/preflight/<run>-<fingerprint>/manifest.json, and preflight.json beside it, also after a failure
"""


rule preflight_checks:
    """Look at template, data, optimisation, libraries and resources of all stages; where Slurm can be asked, so locally."""
    input:
        WORKFLOW.inputs("preflight"),
    output:
        "<outputs>/preflight/{stage}/manifest.json",
    log:
        "<outputs>/logs/preflight/{stage}.log",
    wildcard_constraints:
        stage=WORKFLOW.names("preflight"),
    localrule: True
    conda:
        "../../envs/cpu.yaml"
    params:
        spec=WORKFLOW.spec("preflight"),
        runtime=WORKFLOW.runtime("preflight"),
    shell:
        r"""
        python -m post_training preflight \
            --spec {params.spec:q} \
            --runtime {params.runtime:q} \
            --inputs {input:q} \
            --output {output:q} \
            2>&1 | tee {log:q}
        """
