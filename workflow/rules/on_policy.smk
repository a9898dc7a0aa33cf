"""Datasets that models of the pipeline write: prompts, answers in shards, a reward's scores, rows."""


use rule stage as prompts with:
    """Choose the prompts: each once, none of a row that a mix holds out."""
    input:
        rows=inputs("rows"),
        held_out=inputs("held_out"),
    output:
        "<outputs>/data/prompts/{stage}/manifest.json",
    log:
        "<outputs>/logs/prompts/{stage}.log",


use rule stage as generate with:
    """Answer one shard of the prompts with a model; a killed job continues after its last batch."""
    input:
        prompts=inputs("prompts"),
        model=inputs("model"),
    output:
        "<outputs>/data/generated/{stage}/manifest.json",
    log:
        "<outputs>/logs/generate/{stage}.log",


use rule stage as score with:
    """Score every answer by one reward."""
    input:
        answers=inputs("answers"),
        model=inputs("reward_model"),
    output:
        "<outputs>/data/scored/{stage}/manifest.json",
    log:
        "<outputs>/logs/score/{stage}.log",


use rule score as score_model with:
    """The same for a reward that a model computes, on a GPU."""
    output:
        "<outputs>/data/scored_by_model/{stage}/manifest.json",
    log:
        "<outputs>/logs/score_model/{stage}.log",


use rule stage as select with:
    """Make rows of the scored answers: pairs, conversations or labelled answers."""
    input:
        answers=inputs("answers"),
        scores=inputs("scores"),
    output:
        "<outputs>/data/selected/{stage}/manifest.json",
    log:
        "<outputs>/logs/select/{stage}.log",
