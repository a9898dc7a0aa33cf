"""From a finished training to a model for others: export, its check, provenance, card, publication."""
