"""The workflow is in workflow/Snakefile; this file makes plain `snakemake` build it."""


include: "workflow/Snakefile"


# Snakemake ignores default_target in an included file (snakemake#2056).
rule default:
    default_target: True
    input:
        rules.all.input,
