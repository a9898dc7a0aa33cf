"""Imported by the fork server before it forks workers: their modules, and the tokenizer that they share."""

from post_training.data.tokens import engine, shards  # noqa: F401

engine.preload()
