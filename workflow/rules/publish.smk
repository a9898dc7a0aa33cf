"""A model's card with its evaluation, and the model on the Hugging Face Hub. Both run where snakemake does.

OUTPUTS: <outputs>/cards/<method>-<model>-<fingerprint>/manifest.json and <outputs>/published/.../manifest.json
"""


rule card:
    """Write README.md with the evaluation, beside the manifest and over the one in the model's folder."""
    input:
        WORKFLOW.inputs("card"),
    output:
        "<outputs>/cards/{stage}/manifest.json",
    log:
        "<outputs>/logs/card/{stage}.log",
    wildcard_constraints:
        stage=WORKFLOW.names("card"),
    localrule: True
    conda:
        "../../envs/cpu.yaml"
    params:
        spec=WORKFLOW.spec("card"),
        runtime=WORKFLOW.runtime("card"),
    shell:
        r"""
        python -m post_training stage card \
            --spec {params.spec:q} \
            --runtime {params.runtime:q} \
            --inputs {input:q} \
            --output {output:q} \
            2>&1 | tee {log:q}
        """


rule push:
    """Upload the last stage's model, with the token of HF_TOKEN; only with publish.push_to_hub."""
    input:
        WORKFLOW.push_inputs,
    output:
        "<outputs>/published/{stage}/manifest.json",
    log:
        "<outputs>/logs/push/{stage}.log",
    wildcard_constraints:
        stage=WORKFLOW.names("push"),
    localrule: True
    conda:
        "../../envs/cpu.yaml"
    params:
        spec=WORKFLOW.spec("push"),
        runtime=WORKFLOW.runtime("push"),
    shell:
        r"""
        python -m post_training stage push \
            --spec {params.spec:q} \
            --runtime {params.runtime:q} \
            --inputs {input:q} \
            --output {output:q} \
            2>&1 | tee {log:q}
        """
