"""One rank of the reference stage: its share of the missing shards."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from post_training import methods
from post_training.config import batch, resolve
from post_training.config.batch import BatchPlan
from post_training.config.deepspeed import deepspeed_config
from post_training.core.errors import UserError
from post_training.core.progress import Progress
from post_training.core.task import Task
from post_training.data.view import open_rows
from post_training.methods.dpo.reference import Logps, Shard, missing_shards, shard_path, write_array
from post_training.models import folder as model_folder
from post_training.models import lora
from post_training.models.loading import batches_of
from post_training.models.packing_probe import padding_free
from post_training.training import ranks
from post_training.training.loss_check import settle
from post_training.training.run import arguments_of, load_model, load_tokenizer


def reference_rank(task: Task) -> None:
    """Compute this rank's shards. The launcher writes the manifest.

    The forward pass is the trainer's own (TRL's `compute_ref_log_probs`) with the number formats and
    the attention of training, so that what is stored is what training would have computed.
    """
    view = resolve(task.runtime["pipeline"]).last
    name = view["method"]
    topology = batch.topology_from_environment()
    size = view[name]["reference_batch_size"] or view["training"]["per_device_train_batch_size"]
    plan = BatchPlan(topology, size, 1, size * topology.world_size, None)
    args = arguments_of(task, view, plan, 1, report_to=["none"])
    pairs = open_rows(task.inputs["data"]).distinct()
    pending = _agree_on_missing(task.directory, len(pairs))

    folder = model_folder(task.inputs["model"])
    model, tokenizer = load_model(folder, view), load_tokenizer(folder, view)
    made = {"model": model, "args": args, "processing_class": tokenizer, "padding_free": padding_free(folder, view)}
    if view["model"]["quantization"] is not None:  # whose trainer wants adapters; TRL switches them off
        made |= lora.adapter_arguments(view, model, folder)
    trainer = methods.trainer_class(name)(view, pairs, **made)
    scorer = Scorer(trainer, size)
    checked = settle(trainer, pairs, view)
    if args.process_index == 0:
        print(f"reference: {checked}", flush=True)
    # Under ZeRO-3 every rank holds a part of each layer: all must take the same number of forward passes.
    zero = (deepspeed_config(view) or {}).get("zero_optimization") or {}
    lockstep = zero.get("stage") == 3
    rank, world, done = args.process_index, args.world_size, 0
    progress = Progress("reference", "pairs", sum(stop - start for start, stop in pending))
    for together in _rounds(pending, world):
        passes = max(-(-(stop - start) // size) for start, stop in together) if lockstep else 0
        if rank < len(together):
            shard = together[rank]
            logps = scorer.score([pairs[index] for index in range(*shard)], passes)
            _check_finite(logps, shard, folder, task.inputs["data"])
            write_array(shard_path(task.directory, shard), logps)
        elif lockstep:
            scorer.score([pairs[0]], passes)
        done += sum(stop - start for start, stop in together)
        if rank == 0:
            progress.update(done)
    ranks.leave()


class Scorer:
    """A trainer's model in evaluation mode, on its device."""

    def __init__(self, trainer: Any, batch_size: int) -> None:
        from trl.models.utils import prepare_deepspeed

        accelerator = trainer.accelerator
        self.trainer, self.batch_size = trainer, batch_size
        if trainer.is_deepspeed_enabled:
            self.model = prepare_deepspeed(trainer.model, accelerator)
        else:
            self.model = accelerator.prepare_model(trainer.model, evaluation_mode=True).eval()

    def score(self, pairs: list[dict[str, Any]], passes: int = 0) -> Logps:
        """Log-probabilities [pairs, 2] in nats, summed over the answer's tokens.

        Args:
            pairs: `prompt_ids`, `chosen_ids` and `rejected_ids` of each.
            passes: forward passes to take at least; the result of the surplus ones is thrown away.
        """
        batches = batches_of([_longer(pair) for pair in pairs], self.batch_size)
        logps = np.empty((len(pairs), 2), dtype=np.float32)
        for members in batches + [batches[0][:1]] * max(0, passes - len(batches)):
            inputs = self.trainer._prepare_inputs(self.trainer.data_collator([pairs[index] for index in members]))
            sides = self.trainer.compute_ref_log_probs(self.model, inputs)
            for column, side in enumerate(sides):
                logps[members, column] = side.float().cpu().numpy()
        return logps


def _longer(pair: dict[str, Any]) -> int:
    return len(pair["prompt_ids"]) + max(len(pair["chosen_ids"]), len(pair["rejected_ids"]))


def _rounds(pending: list[Shard], world: int) -> Iterator[list[Shard]]:
    """As many shards at a time as there are ranks."""
    waiting = iter(pending)
    while together := list(islice(waiting, world)):
        yield together


def _agree_on_missing(directory: Path, documents: int) -> list[Shard]:
    """The shards that rank 0 finds missing, on all ranks."""

    def find() -> list[Shard]:
        missing = missing_shards(directory, documents)
        kept = documents - sum(stop - start for start, stop in missing)
        print(f"reference: {documents:,} pairs" + (f", {kept:,} of them done before" if kept else ""), flush=True)
        return missing

    return ranks.from_rank_0(find)


def _check_finite(logps: Logps, shard: Shard, folder: Path, data: Path) -> None:
    bad = np.flatnonzero(~np.isfinite(logps).all(axis=1))
    if len(bad):
        problem = f"{folder}: the reference model computes NaN or infinity for pair {shard[0] + bad[0]} of {data}"
        raise UserError(problem)
