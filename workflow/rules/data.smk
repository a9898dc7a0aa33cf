"""Sources to sequences that a trainer memory-maps, one job a dataset until they are mixed."""


use rule stage as download with:
    """Fetch a Hub dataset at a recorded commit, or check local files; the data rule that may use the network."""
    output:
        "<outputs>/data/raw/{stage}/manifest.json",
    log:
        "<outputs>/logs/download/{stage}.log",
    localrule: True


use rule stage as transform with:
    """Validate a dataset and turn it into conversations or preferences; rejected rows are kept with reasons."""
    input:
        raw=inputs("raw"),
    output:
        "<outputs>/data/transformed/{stage}/manifest.json",
    log:
        "<outputs>/logs/transform/{stage}.log",


use rule stage as filter with:
    """Remove rows of a dataset by data.filters: lengths, languages, contamination, duplicates; reasons are kept."""
    input:
        rows=inputs("rows"),
        earlier=inputs("earlier"),
        evaluation=inputs("evaluation"),
    output:
        "<outputs>/data/filtered/{stage}/manifest.json",
    log:
        "<outputs>/logs/filter/{stage}.log",


use rule stage as tokenize with:
    """Render a dataset's chat template once and keep token ids and labels."""
    input:
        rows=inputs("rows"),
        model=inputs("model"),
    output:
        "<outputs>/data/tokenized/{stage}/manifest.json",
    log:
        "<outputs>/logs/tokenize/{stage}.log",


use rule stage as mix with:
    """Choose examples by weight, order them, pack them; after tokenize, so that a weight re-tokenises nothing."""
    input:
        datasets=inputs("datasets"),
        held_out=inputs("held_out"),
    output:
        "<outputs>/data/mixed/{stage}/manifest.json",
    log:
        "<outputs>/logs/mix/{stage}.log",
