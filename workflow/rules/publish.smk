"""A model's card with its evaluation, and the model on the Hugging Face Hub; both run where snakemake does."""


use rule stage as card with:
    """Write README.md with the evaluation, beside the manifest and over the one in the model's folder."""
    input:
        export=inputs("export"),
        evaluate=inputs("evaluate"),
        lm_eval=inputs("lm_eval"),
    output:
        "<outputs>/cards/{stage}/manifest.json",
    log:
        "<outputs>/logs/card/{stage}.log",
    localrule: True


use rule stage as push with:
    """Upload the last stage's model, with the token of HF_TOKEN; only with publish.push_to_hub."""
    input:
        export=inputs("export"),
        card=inputs("card"),
        token=PLAN.token,
    output:
        "<outputs>/published/{stage}/manifest.json",
    log:
        "<outputs>/logs/push/{stage}.log",
    localrule: True
