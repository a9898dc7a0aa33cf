"""What the models can do on held-out rows, and pages to look at."""


use rule stage as evaluate with:
    """Exact match of answers, accuracy of preferences, and samples, of one model."""
    input:
        model=inputs("model"),
        rows=inputs("rows"),
    output:
        "<outputs>/evaluations/{stage}/manifest.json",
    log:
        "<outputs>/logs/evaluate/{stage}.log",


use rule stage as download_tasks with:
    """Look up the tasks of evaluation.lm_eval and put their rows into the cache of datasets; may use the network."""
    output:
        "<outputs>/data/tasks/{stage}/manifest.json",
    log:
        "<outputs>/logs/download_tasks/{stage}.log",
    priority: 1  # first of all, so that a name that is no task is known early
    localrule: True


use rule stage as lm_eval with:
    """lm-evaluation-harness on one model."""
    input:
        model=inputs("model"),
        tasks=inputs("tasks"),
    output:
        "<outputs>/lm_eval/{stage}/manifest.json",
    log:
        "<outputs>/logs/lm_eval/{stage}.log",


use rule stage as report_page with:
    """Losses, data, evaluation and sample answers of a run on one page."""
    input:
        runs=inputs("runs"),
        measures=inputs("measures"),
    output:
        "<outputs>/reports/{stage}/manifest.json",
        report("<outputs>/reports/{stage}/report.html", category="Runs", labels=PLAN.label("run")),
    log:
        "<outputs>/logs/report/{stage}.log",


use rule stage as compare_runs with:
    """What the runs of `runs` and `sweep` reached on one page, with the spread over seeds."""
    input:
        reports=inputs("reports"),
    output:
        "<outputs>/comparisons/{stage}/manifest.json",
        report("<outputs>/comparisons/{stage}/report.html", category="Comparisons", labels=PLAN.label("runs")),
    log:
        "<outputs>/logs/compare/{stage}.log",
    localrule: True
