"""What a user sees of a call of Snakemake; `snakemake --logger post-training` uses it, the default of all profiles."""
