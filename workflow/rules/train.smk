"""One rule for every method, the reference model's log-probabilities of its pairs, and the model for inference.

REQUIRED INPUTS: the mixed examples, and the base model or the export of the stage before
OUTPUTS:         <outputs>/<method>-<model>-<fingerprint>/manifest.json and model/manifest.json

Checkpoints are not outputs: Snakemake deletes outputs before a job starts, and an interrupted run would lose what it is to
resume from (snakemake#509).
"""


use rule ranks_stage as train with:
    """Train a stage to its last step, resuming from its newest complete checkpoint."""
    input:
        model=inputs("train", "model"),
        data=inputs("train", "data"),
        kernel=inputs("train", "kernel"),
        reference=inputs("train", "reference"),
        preflight=passed("train"),
    output:
        "<outputs>/{stage}/manifest.json",
    log:
        "<outputs>/logs/train/{stage}.log",


use rule ranks_stage as reference with:
    """Compute once the reference model's log-probabilities of every pair; shards of a killed job are kept."""
    input:
        model=inputs("reference", "model"),
        data=inputs("reference", "data"),
        kernel=inputs("reference", "kernel"),
        preflight=passed("reference"),
    output:
        "<outputs>/data/reference/{stage}/manifest.json",
    log:
        "<outputs>/logs/reference/{stage}.log",


use rule gpu_stage as export with:
    """Write the model that inference loads, compare its tensors, reload it, and let it answer."""
    input:
        train=inputs("export", "train"),
        data=inputs("export", "data"),
    output:
        "<outputs>/{run}/model/manifest.json",
    log:
        "<outputs>/logs/export/{run}.log",
    benchmark:
        "<outputs>/logs/benchmarks/{run}-export.tsv"
    threads: PLAN.all_threads
