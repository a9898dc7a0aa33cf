"""One self-contained HTML page of a pipeline: losses, data, evaluation, samples."""

from post_training.report.page import run

__all__ = ["run"]
