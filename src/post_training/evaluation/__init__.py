"""What a model can do: held-out examples, fixed prompts, lm-evaluation-harness."""
