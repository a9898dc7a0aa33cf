"""Evaluations."""

from dataclasses import dataclass, field
from typing import Any

from post_training.config.schema.data import DatasetConfig


@dataclass
class LmEvalConfig:
    """Tasks of lm-evaluation-harness (extra `evaluation`) for the same models. The names are its own."""

    tasks: list[str] = field(default_factory=list)
    """Names of tasks, groups or tags: those that come with lm_eval, and those of `include_path`. Empty = off."""
    include_path: str | None = None
    """Folder of your own task files (YAML), with their data and Python. A change of any file in it makes a stage stale."""
    num_fewshot: int | None = None
    """Solved examples before each question. Null = as the task says."""
    limit: float | None = None
    """Rows of each task: a number, or below 1 a share. Null = all."""
    apply_chat_template: bool = False
    """Ask in the model's chat template; a starting model without one is asked in `data.chat_template`."""
    fewshot_as_multiturn: bool = True
    """With the template, solved examples are turns of their own."""
    seed: int = 1234
    """Seed of the choice of examples."""
    log_samples: bool = False
    """Keep every question and answer, `samples_<task>.jsonl`."""
    batch_size: Any = 8
    """Rows at a time, or `auto` for as many as fit. Never makes a stage stale."""


@dataclass
class EvaluationConfig:
    """Evaluations of every exported model and of the starting model."""

    datasets: list[DatasetConfig] = field(default_factory=list)
    """Conversations give exact match of the greedy last answer; preferences give accuracy. `weight` is not used."""
    max_samples: int | None = None
    """Rows of each dataset that are used. Null = all."""
    max_new_tokens: int = 128
    """Longest answer that is generated."""
    batch_size: int = 64
    """Rows at a time. Never makes a stage stale."""
    during_training_steps: int | None = None
    """Optimizer steps between evaluations of the held-out loss while training, and for DPO of preference accuracy and margin; on
    the mix's held-out rows (`data.eval_fraction`, `eval_split`), at most `max_samples`. Null = off. Makes a stage stale only with
    `training.early_stopping` or `export.checkpoint: best`, which decide by it."""
    prompts: str | None = None
    """JSON Lines file of prompts without an expected answer, `{"prompt": text}` or `{"messages": [...]}`; the answers are
    in `samples.jsonl`."""
    lm_eval: LmEvalConfig = field(default_factory=LmEvalConfig)
    """Benchmarks; off by default, and then the stage does not exist."""
