"""What can be known before a GPU is asked for, from the manifests of the data stages.

REQUIRED INPUTS: every stage's mix, and the model that the pipeline starts from
OUTPUTS:         <outputs>/preflight/<run>-<fingerprint>/manifest.json, and preflight.json beside it, also after a failure
"""


rule preflight_checks:
    """Look at template, data, optimisation, libraries and resources of all stages of all runs on the same data; where Slurm can be asked, so locally."""
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
        runtime=WORKFLOW.told_by_file("preflight"),
    shell:
        r"""
        python -m post_training stage preflight \
            --spec {params.spec:q} \
            --runtime {params.runtime:q} \
            --inputs {input:q} \
            --output {output:q} \
            2>&1 | tee {log:q}
        """


rule probe:
    """A few steps of one stage at its longest batch, on one device."""
    input:
        WORKFLOW.inputs("preflight_probe"),
    output:
        "<outputs>/preflight_probe/{stage}/manifest.json",
    log:
        "<outputs>/logs/preflight_probe/{stage}.log",
    wildcard_constraints:
        stage=WORKFLOW.names("preflight_probe"),
    conda:
        "../../envs/cpu.yaml"
    threads: WORKFLOW.train_threads
    resources:
        **WORKFLOW.resources("preflight_probe"),
    params:
        spec=WORKFLOW.spec("preflight_probe"),
        runtime=WORKFLOW.runtime("preflight_probe"),
    shell:
        r"""
        python -m post_training stage preflight_probe \
            --spec {params.spec:q} \
            --runtime {params.runtime:q} \
            --inputs {input:q} \
            --output {output:q} \
            2>&1 | tee {log:q}
        """
