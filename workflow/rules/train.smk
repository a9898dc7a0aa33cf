"""One rule for every method, the reference model's log-probabilities of its pairs, and the model for inference.

Checkpoints are not outputs: Snakemake deletes outputs before a job starts, and an interrupted run would lose what it is to
resume from (snakemake#509).
"""


use rule stage as train with:
    """Train a stage to its last step, resuming from its newest complete checkpoint."""
    input:
        model=inputs("model"),
        data=inputs("data"),
        kernel=inputs("kernel"),
        reference=inputs("reference"),
        preflight=PLAN.passed,
    output:
        "<outputs>/{stage}/manifest.json",
    log:
        "<outputs>/logs/train/{stage}.log",


use rule stage as reference with:
    """Compute once the reference model's log-probabilities of every pair; shards of a killed job are kept."""
    input:
        model=inputs("model"),
        data=inputs("data"),
        kernel=inputs("kernel"),
        preflight=PLAN.passed,
    output:
        "<outputs>/data/reference/{stage}/manifest.json",
    log:
        "<outputs>/logs/reference/{stage}.log",


use rule stage as export with:
    """Write the model that inference loads, compare its tensors, reload it, and let it answer."""
    input:
        train=inputs("train"),
        data=inputs("data"),
    output:
        "<outputs>/{run}/model/manifest.json",
    log:
        "<outputs>/logs/export/{run}.log",
    benchmark:
        "<outputs>/logs/benchmarks/{run}-export.tsv"
