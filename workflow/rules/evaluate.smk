"""What the models can do on rows that were held out, and a page to look at.

OUTPUTS: <outputs>/evaluations/<model>-<fingerprint>/manifest.json and <outputs>/reports/.../report.html
"""


rule evaluate:
    """Exact match of answers, accuracy of preferences, and samples, of one model."""
    input:
        WORKFLOW.inputs("evaluate"),
    output:
        "<outputs>/evaluations/{stage}/manifest.json",
    log:
        "<outputs>/logs/evaluate/{stage}.log",
    wildcard_constraints:
        stage=WORKFLOW.names("evaluate"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        **WORKFLOW.resources("evaluate"),
    params:
        spec=WORKFLOW.spec("evaluate"),
        runtime=WORKFLOW.runtime("evaluate"),
    shell:
        r"""
        python -m post_training evaluate \
            --spec {params.spec:q} \
            --runtime {params.runtime:q} \
            --inputs {input:q} \
            --output {output:q} \
            2>&1 | tee {log:q}
        """


rule report_page:
    """Losses, data, evaluation and sample answers of a pipeline on one page."""
    input:
        WORKFLOW.inputs("report"),
    output:
        "<outputs>/reports/{stage}/manifest.json",
    log:
        "<outputs>/logs/report/{stage}.log",
    wildcard_constraints:
        stage=WORKFLOW.names("report"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        **WORKFLOW.resources("report"),
    params:
        spec=WORKFLOW.spec("report"),
        runtime=WORKFLOW.runtime("report"),
    shell:
        r"""
        python -m post_training report \
            --spec {params.spec:q} \
            --runtime {params.runtime:q} \
            --inputs {input:q} \
            --output {output:q} \
            2>&1 | tee {log:q}
        """


rule compare_runs:
    """What the runs of `runs` and `sweep` reached on one page, with the spread over seeds."""
    input:
        WORKFLOW.inputs("compare"),
    output:
        "<outputs>/comparisons/{stage}/manifest.json",
    log:
        "<outputs>/logs/compare/{stage}.log",
    wildcard_constraints:
        stage=WORKFLOW.names("compare"),
    localrule: True
    conda:
        "../../envs/cpu.yaml"
    params:
        spec=WORKFLOW.told_by_file("compare"),
    shell:
        r"""
        python -m post_training compare \
            --spec {params.spec:q} \
            --output {output:q} \
            2>&1 | tee {log:q}
        """
