"""The model that the first stage starts from, as a folder on this machine.

OUTPUTS: <outputs>/models/<model>@<fingerprint>/manifest.json
"""


rule download_model:
    """Fetch a Hub model at a recorded commit, or check a local folder; the model rule that may use the network."""
    output:
        "<outputs>/models/{stage}/manifest.json",
    log:
        "<outputs>/logs/download_model/{stage}.log",
    wildcard_constraints:
        stage=WORKFLOW.names("download_model"),
    localrule: True
    conda:
        "../../envs/cpu.yaml"
    params:
        spec=WORKFLOW.spec("download_model"),
        runtime=WORKFLOW.runtime("download_model"),
    shell:
        r"""
        python -m post_training stage download_model \
            --spec {params.spec:q} \
            --runtime {params.runtime:q} \
            --output {output:q} \
            2>&1 | tee {log:q}
        """


rule build_model:
    """Random weights of a small architecture, and a tokenizer trained on the corpus."""
    output:
        "<outputs>/models/{stage}/manifest.json",
    log:
        "<outputs>/logs/build_model/{stage}.log",
    wildcard_constraints:
        stage=WORKFLOW.names("build_model"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        **WORKFLOW.resources("build_model"),
    params:
        spec=WORKFLOW.spec("build_model"),
        runtime=WORKFLOW.runtime("build_model"),
    shell:
        r"""
        python -m post_training stage build_model \
            --spec {params.spec:q} \
            --runtime {params.runtime:q} \
            --output {output:q} \
            2>&1 | tee {log:q}
        """
