"""Datasets that models of the pipeline write: `prompts`, `generate` in shards, `score` by each reward, `select` into rows."""
