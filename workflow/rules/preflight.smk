"""What can be known before a GPU is asked for; preflight.json is beside the manifest, also after a failure."""


use rule stage as preflight_checks with:
    """Check template, data, optimisation, libraries and resources of all runs on the same data; here, where Slurm can be asked."""
    input:
        model=inputs("preflight", "model"),
        data=inputs("preflight", "data"),
        kernel=inputs("preflight", "kernel"),
        reference_model=inputs("preflight", "reference_model"),
    output:
        "<outputs>/preflight/{stage}/manifest.json",
    log:
        "<outputs>/logs/preflight/{stage}.log",
    localrule: True


use rule gpu_stage as probe with:
    """A few steps of one stage at its longest batch, on one device."""
    input:
        model=inputs("preflight_probe", "model"),
        data=inputs("preflight_probe", "data"),
        kernel=inputs("preflight_probe", "kernel"),
        reference_model=inputs("preflight_probe", "reference_model"),
    output:
        "<outputs>/preflight_probe/{stage}/manifest.json",
    log:
        "<outputs>/logs/preflight_probe/{stage}.log",
    threads: PLAN.all_threads
