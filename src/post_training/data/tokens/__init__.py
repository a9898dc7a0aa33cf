"""Conversations to token ids and labels: templates, tokenizers, worker processes."""
