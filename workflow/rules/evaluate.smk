"""What the models can do on rows that were held out, and a page to look at.

OUTPUTS: <outputs>/{evaluations,lm_eval}/<model>-<fingerprint>/manifest.json and <outputs>/reports/.../report.html
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
        python -m post_training stage evaluate \
            --spec {params.spec:q} \
            --runtime {params.runtime:q} \
            --inputs {input:q} \
            --output {output:q} \
            2>&1 | tee {log:q}
        """


rule download_tasks:
    """Look up the tasks of evaluation.lm_eval and put their rows into the cache of datasets; may use the network."""
    output:
        "<outputs>/data/tasks/{stage}/manifest.json",
    log:
        "<outputs>/logs/download_tasks/{stage}.log",
    wildcard_constraints:
        stage=WORKFLOW.names("download_tasks"),
    # First of all, so that a name that is no task is known early.
    priority: 1
    localrule: True
    conda:
        "../../envs/cpu.yaml"
    params:
        spec=WORKFLOW.spec("download_tasks"),
        runtime=WORKFLOW.runtime("download_tasks"),
    shell:
        r"""
        python -m post_training stage download_tasks \
            --spec {params.spec:q} \
            --runtime {params.runtime:q} \
            --output {output:q} \
            2>&1 | tee {log:q}
        """


rule lm_eval:
    """lm-evaluation-harness on one model."""
    input:
        WORKFLOW.inputs("lm_eval"),
    output:
        "<outputs>/lm_eval/{stage}/manifest.json",
    log:
        "<outputs>/logs/lm_eval/{stage}.log",
    wildcard_constraints:
        stage=WORKFLOW.names("lm_eval"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        **WORKFLOW.resources("lm_eval"),
    params:
        spec=WORKFLOW.spec("lm_eval"),
        runtime=WORKFLOW.runtime("lm_eval"),
    shell:
        r"""
        python -m post_training stage lm_eval \
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
        manifest="<outputs>/reports/{stage}/manifest.json",
        page=report(
            "<outputs>/reports/{stage}/report.html",
            category="Runs",
            labels={"run": "{stage}"},
        ),
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
        python -m post_training stage report \
            --spec {params.spec:q} \
            --runtime {params.runtime:q} \
            --inputs {input:q} \
            --output {output.manifest:q} \
            2>&1 | tee {log:q}
        """


rule compare_runs:
    """What the runs of `runs` and `sweep` reached on one page, with the spread over seeds."""
    input:
        WORKFLOW.inputs("compare"),
    output:
        manifest="<outputs>/comparisons/{stage}/manifest.json",
        page=report(
            "<outputs>/comparisons/{stage}/report.html",
            category="Comparisons",
            labels={"runs": "{stage}"},
        ),
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
        python -m post_training stage compare \
            --spec {params.spec:q} \
            --output {output.manifest:q} \
            2>&1 | tee {log:q}
        """
