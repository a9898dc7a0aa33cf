"""Datasets that models of the pipeline write: prompts, answers in shards, a reward's scores, rows."""


use rule cpu_stage as prompts with:
    """Choose the prompts: each once, none of a row that a mix holds out."""
    input:
        rows=inputs("prompts", "rows"),
        held_out=inputs("prompts", "held_out"),
    output:
        "<outputs>/data/prompts/{stage}/manifest.json",
    log:
        "<outputs>/logs/prompts/{stage}.log",


use rule gpu_stage as generate with:
    """Answer one shard of the prompts with a model; a killed job continues after its last batch."""
    input:
        prompts=inputs("generate", "prompts"),
        model=inputs("generate", "model"),
    output:
        "<outputs>/data/generated/{stage}/manifest.json",
    log:
        "<outputs>/logs/generate/{stage}.log",


use rule cpu_stage as score with:
    """Score every answer by one reward that a program computes."""
    input:
        answers=inputs("score", "answers"),
    output:
        "<outputs>/data/scored/{stage}/manifest.json",
    log:
        "<outputs>/logs/score/{stage}.log",


use rule gpu_stage as score_model with:
    """Score every answer by one reward that a model computes."""
    input:
        answers=inputs("score_model", "answers"),
        model=inputs("score_model", "reward_model"),
    output:
        "<outputs>/data/scored_by_model/{stage}/manifest.json",
    log:
        "<outputs>/logs/score_model/{stage}.log",


use rule cpu_stage as select with:
    """Make rows of the scored answers: pairs, conversations or labelled answers."""
    input:
        answers=inputs("select", "answers"),
        scores=inputs("select", "scores"),
    output:
        "<outputs>/data/selected/{stage}/manifest.json",
    log:
        "<outputs>/logs/select/{stage}.log",
