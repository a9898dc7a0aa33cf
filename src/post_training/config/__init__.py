"""One YAML with dot overrides, resolved to the flat view that each stage sees."""

from post_training.config.load import Pipeline, resolve, resolve_runs
from post_training.config.trees import load_file, read_config

__all__ = ["Pipeline", "load_file", "read_config", "resolve", "resolve_runs"]
