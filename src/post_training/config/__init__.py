"""One YAML with dot overrides, resolved to the flat view that each stage sees."""

from post_training.config.load import Pipeline, load_file, resolve, resolve_runs

__all__ = ["Pipeline", "load_file", "resolve", "resolve_runs"]
