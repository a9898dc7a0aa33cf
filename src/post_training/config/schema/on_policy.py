"""Datasets that a model of the pipeline writes: prompts, answers, scores, selection."""

from dataclasses import dataclass
from typing import Any


@dataclass
class PromptsConfig:
    """What is asked. One of `path` and `dataset`."""

    path: Any = ""
    """Files or Hugging Face dataset id, as the `path` of a dataset."""
    dataset: str | None = None
    """Instead of `path`: name of a dataset of this pipeline. Each row is asked up to its last user turn; prompts of rows that
    its stage holds out are left out."""
    subset: str | None = None
    """Configuration name of a Hub dataset."""
    split: str = "train"
    """As of a dataset: `train[:1%]`, `train[100:200]`."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""
    transform: Any = "prompt"
    """Transform of the rows; `prompt` keeps the columns beside the prompt, which rewards may read."""
    rows: int | None = None
    """How many prompts, chosen by content. Null = all."""
    seed: int = 0
    """Seed of that choice."""


@dataclass
class ServerConfig:
    """A program with OpenAI's chat API in place of Transformers: by `command`, at `url`, or, with neither of them (`server: {}`), by
    `slurm.generate.server_command`."""

    command: str | None = None
    """Starts it for each shard, in its own environment or container; `{model}` is the model's folder and `{port}` a free port:
    `/opt/vllm/bin/vllm serve {model} --port {port}`. Never makes a finished dataset stale."""
    url: str | None = None
    """Instead: one that runs elsewhere, `https://host/v1`, or the whole address, which ends with `/chat/completions`. `generate.model` is the name of its model."""
    model_name: str | None = None
    """With `command`: name by which the server knows the model. Null = the model's folder."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key, where one is needed."""
    concurrency: int = 64
    """Requests at a time."""
    startup_seconds: float = 900.0
    """How long a server may take until it answers at `/health`."""
    request_seconds: float = 600.0
    """How long an answer may take."""
    max_retries: int = 5
    """How often a failed request is sent again, after pauses that double, or that the server asks for (`Retry-After`)."""


@dataclass
class GenerateConfig:
    """Answers of a model to the prompts."""

    model: str = ""
    """`base` = the model that the pipeline starts from, the name of a stage = its exported model, or another model's id or
    folder, which is asked in its own chat template."""
    n: int = 4
    """Answers to each prompt."""
    temperature: float = 1.0
    """0 = greedy, with `n: 1`; else from 0.001."""
    top_p: float = 1.0
    """Sample from the most probable tokens that together have this probability."""
    top_k: int = 0
    """Sample from this many tokens. 0 = all."""
    max_new_tokens: int = 512
    """Longest answer; longer ones are cut, which `select.cut` handles."""
    seed: int = 0
    """Seed of the answers: each has a random generator of its own, from this seed, its prompt and its number."""
    shards: int = 1
    """Jobs that the work is divided among; a shard has a GPU, or as many as the model needs. Never makes a finished dataset stale."""
    batch_size: int = 64
    """Answers that are generated at a time; halved where they do not fit the memory. Never makes stale."""
    server: ServerConfig | None = None
    """Generate with a server. Null = with Transformers, in the job itself."""


@dataclass
class SelectConfig:
    """Scored answers -> rows of the method: pairs for preferences, conversations for SFT, labels for KTO."""

    pairs: str = "best_worst"
    """Pairs: `best_worst` score of a prompt, `best_random` = the best with any that is worse, `all_ordered` = every two with a
    better one."""
    min_margin: float = 0.0
    """Pairs: smallest difference of the scores; equal scores never make a pair."""
    margin: bool = False
    """Pairs for a reward model: with the difference of their scores as `margin`, by which its loss separates them."""
    best: int | None = None
    """Conversations: how many of a prompt's best answers. Null = 1, or with `threshold` all."""
    threshold: float | None = None
    """Conversations: lowest score. Labels: from this score on an answer is desirable."""
    cut: str = "drop"
    """Answers without an end, cut by `max_new_tokens`: `drop` or `keep`."""
    seed: int = 0
    """Seed of `best_random`."""
