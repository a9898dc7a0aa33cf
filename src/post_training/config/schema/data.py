"""Datasets, filters, and conversion to tokens."""

from dataclasses import dataclass, field
from typing import Any

from post_training.config.schema.on_policy import GenerateConfig, PromptsConfig, SelectConfig


@dataclass
class DatasetConfig:
    """One source of examples."""

    name: str = ""
    """Your name for it, used in paths: letters, digits, `.`, `_`, `-`. Empty = from `path`."""
    path: Any = ""
    """Local file, glob, folder of files or of `save_to_disk`, a list of these, or Hugging Face dataset id."""
    subset: str | None = None
    """Configuration name of a Hub dataset."""
    split: str = "train"
    """Split of a Hub dataset or of a folder of `save_to_disk`; other local files are one, `train`. May be cut:
    `train[:1%]`, `train[100:200]`."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset; recorded as a commit."""
    weight: float = 1.0
    """Copies of the dataset in the mix: 1 = each row once, 0.5 = half the rows, 2 = each row twice, 0 = left out."""
    rows: int | None = None
    """Instead of `weight`: how many rows, some of them more than once where there are fewer."""
    tokens: int | None = None
    """Instead of `weight`: the fewest rows that hold so many tokens."""
    eval_split: str | None = None
    """Held-out rows: another split, or beside a local file another path. None of them is trained on in any dataset."""
    transform: Any = "messages"
    """Name of a transform, or `{name: ..., argument: value}`."""
    prompts: PromptsConfig | None = None
    """Instead of `path`: prompts, which `generate.model` answers."""
    generate: GenerateConfig | None = None
    """Who answers them, and how."""
    score: list[Any] = field(default_factory=list)
    """Rewards of the answers, `{reward: NAME, weight: 1.0, limit_seconds: 60, argument: value}` each; an answer's score is their
    weighted sum. One that takes longer than `limit_seconds` has no score; null = no limit, as of rewards with a GPU
    or a server. Of an evaluation dataset: rewards in place of exact match, of greedy answers or as `generate` samples them."""
    select: SelectConfig | None = None
    """Which of the scored answers become rows. Null = its defaults."""


@dataclass
class FiltersConfig:
    """Filters of each dataset before it is tokenised; removed rows and reasons are in `removed.jsonl`. Held-out and
    evaluation rows are not filtered."""

    deduplicate: str | None = None
    """`exact` = equal rows, `near` = similar ones too; the first is kept, datasets in the order of `data.datasets`. Null = off."""
    near_threshold: float = 0.8
    """Jaccard similarity of two rows' runs of 5 words from which they are near-duplicates, in (0, 1]."""
    decontaminate: bool = False
    """Remove rows that hold texts of `evaluation.datasets`, of an `eval_split` or of `decontaminate_against`."""
    decontaminate_against: list[str] = field(default_factory=list)
    """Further evaluation sets: data files with any columns, or globs."""
    ngram_words: int = 8
    """Words of the n-grams that a row may have in common with an evaluation text; 8 as Tulu 3, 13 as GPT-3."""
    ngram_overlap: float = 0.5
    """Share of an evaluation text's words in common n-grams above which a row is removed; 0 = any common n-gram (GPT-3)."""
    languages: list[str] = field(default_factory=list)
    """ISO 639 codes of the languages to keep (`[en, de]`). Text in no language (code, numbers) is kept. Empty = all."""
    min_language_confidence: float = 0.8
    """Rows whose language is detected with less confidence are kept, in [0, 1]."""
    min_characters: int | None = None
    """Fewest characters of a row without its system turns."""
    max_characters: int | None = None
    """Most characters of it."""
    min_turns: int | None = None
    """Fewest turns of a row without its system turns; of a pair, those of both answers."""
    max_turns: int | None = None
    """Most turns of it."""


@dataclass
class DataConfig:
    """Datasets, their conversion to conversations, and tokenisation."""

    datasets: list[DatasetConfig] = field(default_factory=list)
    """The sources of the mix."""
    chat_template: str = "chatml"
    """`chatml`, `llama3`, `tulu3`, `olmo`, `qwen3`, `zephyr`, `gemma`, `apertus`, the path of a `.jinja` file with
    generation markers, or `tokenizer` for the one that comes with the model, if it has markers."""
    special_tokens_in_content: str = "encode_as_text"
    """Text in a row that spells a control token (`<|im_end|>`): `encode_as_text`, so that it never becomes that token;
    `reject` the row; or `allow` it to forge the token."""
    eval_fraction: float = 0.0
    """Share of each dataset's rows that is held out, chosen by content, where it has no `eval_split`. Equal rows (pairs of
    one prompt) are held out together, in every dataset."""
    transform_modules: list[str] = field(default_factory=list)
    """Your own transforms and rewards: `.py` files or importable modules that call `register_transform` or `register_reward`."""
    max_reject_fraction: float = 0.05
    """Share of a dataset's rows that may be rejected before its job fails."""
    strict: bool = False
    """Fail at the first rejected row instead."""
    last_turn: str = "trim"
    """A conversation or answer whose last turn is not the assistant's: `trim` cuts what follows the assistant's last
    turn, which no loss would be computed on, and counts it; `reject` rejects the row."""
    seed: int = 42
    """Seed of which rows are used, and in what order."""
    filters: FiltersConfig = field(default_factory=FiltersConfig)
    """Filters between transform and tokenise; all off by default, and then the stage does not exist."""
    num_proc: int | None = None
    """Worker processes of a data job, capped by the cores. Null = all cores of the job. Never makes stale."""
