"""The model that the first stage starts from, and the attention kernel, as folders on this machine."""


use rule stage as download_model with:
    """Fetch a Hub model at a recorded commit, or check a local folder; the model rule that may use the network."""
    output:
        "<outputs>/models/{stage}/manifest.json",
    log:
        "<outputs>/logs/download_model/{stage}.log",
    wildcard_constraints:
        stage=PLAN.names("download_model"),
    localrule: True


use rule stage as download_kernel with:
    """Fetch an attention kernel of the Hub at a recorded commit, for jobs without network; may use it itself."""
    output:
        "<outputs>/kernels/{stage}/manifest.json",
    log:
        "<outputs>/logs/download_kernel/{stage}.log",
    localrule: True


use rule stage as build_model with:
    """Random weights of a small architecture, and a tokenizer trained on the corpus."""
    output:
        "<outputs>/models/{stage}/manifest.json",
    log:
        "<outputs>/logs/build_model/{stage}.log",
    wildcard_constraints:
        stage=PLAN.names("build_model"),


use rule stage as merge_adapter with:
    """Adapters of somebody's own in the weights of their model, compared as an export is."""
    input:
        base=inputs("base"),
    output:
        "<outputs>/models/{stage}/manifest.json",
    log:
        "<outputs>/logs/merge_adapter/{stage}.log",
    wildcard_constraints:
        stage=PLAN.names("merge_adapter"),
