"""One rule for every method, what a reference model says about its pairs, and the inference checkpoint of its result.

REQUIRED INPUTS: the mixed rows, and the base model or the export of the stage before
OUTPUTS:         <outputs>/<method>-<model>-<fingerprint>/manifest.json and model/manifest.json
"""


rule train:
    """Train a stage to its last step, resuming from its newest whole checkpoint.

    Checkpoints are not outputs: Snakemake deletes outputs before a job starts, and an interrupted
    run would lose what it came to continue (snakemake#509).
    """
    input:
        stages=WORKFLOW.train_inputs,
        preflight=WORKFLOW.demanded_preflight("train", "run"),
    output:
        "<outputs>/{run}/manifest.json",
    log:
        "<outputs>/logs/train/{run}.log",
    wildcard_constraints:
        run=WORKFLOW.names("train"),
    conda:
        "../../envs/cpu.yaml"
    # Every core: two runs of one plan must not share this machine's devices.
    threads: WORKFLOW.train_threads
    resources:
        **WORKFLOW.resources("train", "run"),
    params:
        spec=WORKFLOW.spec("train", "run"),
        runtime=WORKFLOW.runtime("train", "run"),
    shell:
        r"""
        python -m post_training stage train \
            --spec {params.spec:q} \
            --runtime {params.runtime:q} \
            --inputs {input.stages:q} \
            --output {output:q} \
            2>&1 | tee -a {log:q}
        """


rule reference:
    """Compute once what the reference model says about every pair; shards of a killed job are kept."""
    input:
        stages=WORKFLOW.inputs("reference"),
        preflight=WORKFLOW.demanded_preflight("reference"),
    output:
        "<outputs>/data/reference/{stage}/manifest.json",
    log:
        "<outputs>/logs/reference/{stage}.log",
    wildcard_constraints:
        stage=WORKFLOW.names("reference"),
    conda:
        "../../envs/cpu.yaml"
    threads: WORKFLOW.train_threads
    resources:
        **WORKFLOW.resources("reference"),
    params:
        spec=WORKFLOW.spec("reference"),
        runtime=WORKFLOW.runtime("reference"),
    shell:
        r"""
        python -m post_training stage reference \
            --spec {params.spec:q} \
            --runtime {params.runtime:q} \
            --inputs {input.stages:q} \
            --output {output:q} \
            2>&1 | tee -a {log:q}
        """


rule export:
    """Write the model that inference loads, then reload it, compare logits, and let it answer."""
    input:
        WORKFLOW.inputs("export", "run"),
    output:
        "<outputs>/{run}/model/manifest.json",
    log:
        "<outputs>/logs/export/{run}.log",
    wildcard_constraints:
        run=WORKFLOW.names("train"),
    conda:
        "../../envs/cpu.yaml"
    threads: WORKFLOW.train_threads
    resources:
        **WORKFLOW.resources("export", "run"),
    params:
        spec=WORKFLOW.spec("export", "run"),
        runtime=WORKFLOW.runtime("export", "run"),
    shell:
        r"""
        python -m post_training stage export \
            --spec {params.spec:q} \
            --runtime {params.runtime:q} \
            --inputs {input:q} \
            --output {output:q} \
            2>&1 | tee {log:q}
        """
