"""Log-probabilities of answers, in batches of like lengths that fit the memory."""

from typing import Any

from post_training.core.progress import Progress
from post_training.models.loading import in_batches

# Logits of a batch stay below this many bytes, whatever the vocabulary.
_LOGIT_BYTES = 1 << 30
Row = tuple[list[int], list[int]]
"""Ids of a sequence, and the positions of its answer, from 1."""


def log_probabilities(model: Any, pad: int, rows: list[Row], batch_size: int) -> list[tuple[float, int]]:
    """Summed log-probability (nats) of the answer's tokens, and their number, for each sequence."""
    lengths = [len(ids) for ids, _ in rows]
    fitting = _LOGIT_BYTES // (4 * max(lengths) * model.config.get_text_config().vocab_size)
    size, progress = max(1, min(batch_size, fitting)), Progress("evaluate: probabilities", "sequences", len(rows))
    return in_batches(rows, lengths, size, lambda some: _of_batch(model, pad, some), "evaluate", progress.update)


def _of_batch(model: Any, pad: int, rows: list[Row]) -> list[tuple[float, int]]:
    import torch
    from torch.nn.utils.rnn import pad_sequence

    sequences, results = [torch.tensor(ids, device=model.device) for ids, _ in rows], []
    ids = pad_sequence(sequences, batch_first=True, padding_value=pad)
    mask = pad_sequence([torch.ones_like(sequence) for sequence in sequences], batch_first=True)
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    for line, (_, answered) in enumerate(rows):
        positions = torch.tensor(answered, device=ids.device, dtype=torch.long)
        # The token at p is predicted at p - 1.
        chosen = torch.log_softmax(logits[line, positions - 1].float(), dim=-1)
        results.append((float(chosen.gather(1, ids[line, positions][:, None]).sum()), len(positions)))
    return results
