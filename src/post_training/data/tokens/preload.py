"""What the fork server imports before it forks workers: their modules, and the tokenizer that all of them use."""

from post_training.data.tokens import engine, shards  # noqa: F401

engine.preload()
