"""Sources to rows that a trainer memory-maps, one job a dataset until they are mixed.

REQUIRED INPUTS: data.datasets of the configuration
OUTPUTS:         <outputs>/data/mixed/<method>-<fingerprint>/manifest.json, documents.npy and epoch-*.npy beside it
"""


rule download:
    """Fetch a Hub dataset at a recorded commit, or check local files; the data rule that may use the network."""
    output:
        "<outputs>/data/raw/{stage}/manifest.json",
    log:
        "<outputs>/logs/download/{stage}.log",
    wildcard_constraints:
        stage=WORKFLOW.names("download"),
    localrule: True
    conda:
        "../../envs/cpu.yaml"
    params:
        spec=WORKFLOW.spec("download"),
        runtime=WORKFLOW.runtime("download"),
    shell:
        r"""
        python -m post_training stage download \
            --spec {params.spec:q} \
            --runtime {params.runtime:q} \
            --output {output:q} \
            2>&1 | tee {log:q}
        """


rule transform:
    """Validate a dataset and turn it into conversations or preferences; rejected rows are kept with reasons."""
    input:
        WORKFLOW.inputs("transform"),
    output:
        "<outputs>/data/transformed/{stage}/manifest.json",
    log:
        "<outputs>/logs/transform/{stage}.log",
    wildcard_constraints:
        stage=WORKFLOW.names("transform"),
    conda:
        "../../envs/cpu.yaml"
    threads: WORKFLOW.data_threads
    resources:
        **WORKFLOW.resources("transform"),
    params:
        spec=WORKFLOW.spec("transform"),
        runtime=WORKFLOW.runtime("transform"),
    shell:
        r"""
        python -m post_training stage transform \
            --spec {params.spec:q} \
            --runtime {params.runtime:q} \
            --inputs {input:q} \
            --output {output:q} \
            2>&1 | tee {log:q}
        """


rule filter:
    """Remove rows of a dataset by data.filters: lengths, languages, contamination, duplicates; reasons are kept."""
    input:
        WORKFLOW.inputs("filter"),
    output:
        "<outputs>/data/filtered/{stage}/manifest.json",
    log:
        "<outputs>/logs/filter/{stage}.log",
    wildcard_constraints:
        stage=WORKFLOW.names("filter"),
    conda:
        "../../envs/cpu.yaml"
    threads: WORKFLOW.data_threads
    resources:
        **WORKFLOW.resources("filter"),
    params:
        spec=WORKFLOW.spec("filter"),
        runtime=WORKFLOW.runtime("filter"),
    shell:
        r"""
        python -m post_training stage filter \
            --spec {params.spec:q} \
            --runtime {params.runtime:q} \
            --inputs {input:q} \
            --output {output:q} \
            2>&1 | tee {log:q}
        """


rule tokenize:
    """Render a dataset's chat template once and keep token ids and labels."""
    input:
        WORKFLOW.inputs("tokenize"),
    output:
        "<outputs>/data/tokenized/{stage}/manifest.json",
    log:
        "<outputs>/logs/tokenize/{stage}.log",
    wildcard_constraints:
        stage=WORKFLOW.names("tokenize"),
    conda:
        "../../envs/cpu.yaml"
    threads: WORKFLOW.data_threads
    resources:
        **WORKFLOW.resources("tokenize"),
    params:
        spec=WORKFLOW.spec("tokenize"),
        runtime=WORKFLOW.runtime("tokenize"),
    shell:
        r"""
        python -m post_training stage tokenize \
            --spec {params.spec:q} \
            --runtime {params.runtime:q} \
            --inputs {input:q} \
            --output {output:q} \
            2>&1 | tee {log:q}
        """


rule mix:
    """Choose rows by weight, order them, pack them; after tokenize, so that a weight re-tokenises nothing."""
    input:
        WORKFLOW.inputs("mix"),
    output:
        "<outputs>/data/mixed/{stage}/manifest.json",
    log:
        "<outputs>/logs/mix/{stage}.log",
    wildcard_constraints:
        stage=WORKFLOW.names("mix"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        **WORKFLOW.resources("mix"),
    params:
        spec=WORKFLOW.spec("mix"),
        runtime=WORKFLOW.runtime("mix"),
    shell:
        r"""
        python -m post_training stage mix \
            --spec {params.spec:q} \
            --runtime {params.runtime:q} \
            --inputs {input:q} \
            --output {output:q} \
            2>&1 | tee {log:q}
        """
