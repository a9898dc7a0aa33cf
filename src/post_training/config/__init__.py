"""One YAML with dot overrides, resolved to the flat view that each stage sees."""

from post_training.config.load import Pipeline, resolve, resolve_runs
from post_training.config.trees import read_config
from post_training.config.yaml_file import load_file

__all__ = ["Pipeline", "load_file", "read_config", "resolve", "resolve_runs"]
