"""What can be known before a GPU is asked for; preflight.json is beside the manifest, also after a failure."""


use rule stage as preflight_checks with:
    """Check template, data, optimisation, libraries and resources of all runs on the same data; here, where Slurm can be asked."""
    input:
        model=inputs("model"),
        data=inputs("data"),
        kernel=inputs("kernel"),
        reference_model=inputs("reference_model"),
    output:
        "<outputs>/preflight/{stage}/manifest.json",
    log:
        "<outputs>/logs/preflight/{stage}.log",
    localrule: True


use rule preflight_checks as probe with:
    """A few steps of one stage of them at its longest batch, on one device."""
    output:
        "<outputs>/preflight_probe/{stage}/manifest.json",
    log:
        "<outputs>/logs/preflight_probe/{stage}.log",
