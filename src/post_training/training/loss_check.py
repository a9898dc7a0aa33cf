"""Before the first step of every start (under ZeRO-3, of a run): the loss is the model's own.

The log-probabilities that training computes go through packing or padding, an attention kernel, and TRL's fused output layer. Each
could be wrong for a model that nobody has tried: nothing fails, and another model is trained than the one that is exported. So some
rows of the mix, cut short, are put through the trainer's own collator and forward pass, and each of their documents alone
through the model's own forward. Where they differ by more than rounding, the model's own forward takes the place of the fused
layer; where they still do, the run stops. No gradient, no random number, and no step is taken.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from post_training import methods
from post_training.core.errors import UserError, brief
from post_training.data.collate import collate_step
from post_training.data.loss_mask import Ids
from post_training.models.own_forward import use_own_forward, uses_own_forward
from post_training.training.ranks import gather

KEY = "model.step"
"""The name in `preflight.only_warn` with which a run trains all the same."""
OWN_FORWARD = "own_forward"
"""A file beside the checkpoints of a run that trains by the model's own forward."""
_DOCUMENTS, _TOKENS = 4, 256
_TO_MODEL = (
    *("input_ids", "attention_mask", "position_ids", "seq_idx", "layout"),
    *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"),
)
# Rounding: of the mean over all tokens, and of the mean distance of a token, in nats, or as a share of a loss above 1. The second is
# wide in 16 bits, where a router may choose another expert for a token.
_EXACT, _ROUNDED = (1e-4, 1e-3), (2e-2, 1.5e-1)


@dataclass(frozen=True)
class Compared:
    """The same tokens by training's forward pass and by the model's own."""

    tokens: int
    trained: float
    """Mean negative log-likelihood by training's forward pass, in nats."""
    own: float
    """The same by the model's own forward, a document at a time."""
    distance: float
    """Mean over tokens of the absolute difference, in nats."""
    balances: bool = True
    """Whether training's forward pass gives the loss of a router that balances its experts, where TRL asks for it."""

    def agrees(self, args: Any) -> bool:
        """Whether they differ by no more than rounding in the number format of TRL's arguments `args`."""
        if not self.tokens:
            return True
        mean, each = _ROUNDED if args.bf16 or args.fp16 or args.tf32 else _EXACT
        size = max(1.0, abs(self.own))
        return abs(self.trained - self.own) <= mean * size and self.distance <= each * size

    def __str__(self) -> str:
        return f"{self.trained:.6g}, and {self.own:.6g} by the model's own forward"


class LossCheck(TrainerCallback):
    """Checks when the model of the trainer is on its device, with the weights of the checkpoint that the run resumes from."""

    def __init__(self, trainer: Any, rows: Any, view: dict[str, Any]) -> None:
        """`view`: the stage's flat configuration."""
        self.trainer, self.rows, self.view = trainer, rows, view
        self.said = ""
        """What was found."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Every rank takes the same rows, so that all decide alike. Raises UserError."""
        began = time.monotonic()
        chosen = Path(args.output_dir) / OWN_FORWARD
        if state.global_step and is_deepspeed_zero3_enabled():  # type: ignore[no-untyped-call]
            # After a checkpoint DeepSpeed would not gather again, for the first backward pass, what this has gathered.
            self.said = "loss compared with the model's own forward when the run began"
            if chosen.exists():
                use_own_forwards(self.trainer)
                self.trainer.aux_loss_enabled = json.loads(chosen.read_text())["aux_loss_enabled"]
        else:
            self.said = settle(self.trainer, self.rows, self.view)
            if args.process_index == 0 and uses_own_forward(self.trainer.accelerator.unwrap_model(self.trainer.model)):
                chosen.parent.mkdir(parents=True, exist_ok=True)
                chosen.write_text(json.dumps({"aux_loss_enabled": getattr(self.trainer, "aux_loss_enabled", False)}))
        self.trainer.tokens.leave_out(time.monotonic() - began)
        if args.process_index == 0:
            print(f"{self.view['stage']}: {self.said}", flush=True)


def settle(trainer: Any, rows: Any, view: dict[str, Any]) -> str:
    """Compare, and switch the trainer's models to their own forward where that is needed. Every rank must call it.

    Args:
        trainer: TRL's, on rows of a mix, with its model prepared for the device.
        rows: of its mix.
        view: the stage's flat configuration.

    Returns:
        One line with both losses.

    Raises:
        UserError: where the losses differ with the model's own forward, too.
    """
    answers = methods.answers(view["method"])
    what = "loss of {:,} tokens" if answers else "mean negative reward of {:,} answers"
    first, problem = None, ""
    try:
        first = compare(trainer, rows, answers)
        problem = f"gives a loss of {first}"
    except Exception as error:  # each architecture has its own
        problem = f"does not serve this model ({type(error).__name__}: {brief(error, 100)})"
    if first is not None and _all_agree(first, trainer.args):
        return f"{what.format(first.tokens)} before the first step: {first}"
    if answers:
        use_own_forwards(trainer)
    second = compare(trainer, rows, answers)
    if not second.balances:
        trainer.aux_loss_enabled = False  # the model has none, and TRL would multiply nothing
    if _all_agree(second, trainer.args):
        cost = "the model's own forward is used, which holds all logits of a micro-batch"
        return f"TRL's fused output layer {problem}; {cost}"
    found = f"before the first step training's {what.format(second.tokens)} is {second}"
    remedy = f"packing, padding or attention changes what this model computes: try {_alternative(trainer)}"
    if KEY in view["preflight"]["only_warn"]:
        return f"warning: {found}; {remedy}"
    raise UserError(f"{found}; {remedy}, or let it run with preflight.only_warn='[{KEY}]'")


def use_own_forwards(trainer: Any) -> None:
    """Switch the trainer's models over, for good."""
    for one in (trainer.model, getattr(trainer, "ref_model", None)):
        if one is not None:
            use_own_forward(trainer.accelerator.unwrap_model(one))


def _alternative(trainer: Any) -> str:
    packs = getattr(trainer.args, "packing", False)
    return "packing=false, or " * packs + "model.attn_implementation=eager, or training.per_device_train_batch_size=1"


def compare(trainer: Any, rows: Any, answers: bool = True) -> Compared:
    """Both losses of the first rows; the model is left as it was. Without `answers`, rewards take the place of log-probabilities."""
    chosen, documents = _short(rows, min(2, trainer.args.per_device_train_batch_size))
    batch = trainer._prepare_inputs(collate_step(trainer.data_collator, [chosen])[0])
    inputs = {name: batch[name] for name in _TO_MODEL if name in batch}
    model, device = trainer.model, trainer.args.device
    training = model.training
    cuda = [torch.cuda.current_device()] if device.type == "cuda" else []
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=cuda), trainer.accelerator.autocast():
            if getattr(trainer, "aux_loss_enabled", False):
                inputs["output_router_logits"] = True
            found = model(**inputs, **(_labelled(batch) if answers else {}))
            trained = found.log_probs[found.label_mask.bool()] if answers else found.logits[:, 0]
            trained = trained.double().cpu()
            own = torch.cat([_own(model, ids, begin if answers else None, device) for ids, begin in documents])
    finally:
        model.train(training)
    balances = "output_router_logits" not in inputs or found.aux_loss is not None
    distance = float((trained - own).abs().mean())
    return Compared(len(own), float(-trained.mean()), float(-own.mean()), distance, balances)


def _labelled(batch: dict[str, Any]) -> dict[str, Any]:
    """What TRL adds to a batch for the log-probabilities of all tokens that have a label, document by document."""
    labels = batch.get("labels")
    if labels is None:
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    return {"labels": labels, "use_cache": False, "fused_lm_head": True}


def _own(model: Any, ids: Ids, begin: int | None, device: torch.device) -> torch.Tensor:
    """By the model's own forward on the document alone, float64: log-probabilities of the tokens from number `begin` on, or its reward."""
    document = torch.from_numpy(np.asarray(ids, dtype=np.int64))[None].to(device)
    if begin is None:
        return model(input_ids=document, use_cache=False).logits[0].double().cpu()
    scores = model(input_ids=document, use_cache=False).logits[0, begin - 1 : -1].float().log_softmax(-1)
    return scores.gather(-1, document[0, begin:, None])[:, 0].double().cpu()


def _short(rows: Any, count: int) -> tuple[list[dict[str, Any]], list[tuple[Ids, int]]]:
    """Some rows of the mix, cut short, and their documents in the order of the collator: ids, and the first that is scored."""
    first = rows[0]
    if "input_ids" in first:
        found = _documents(rows, _DOCUMENTS if getattr(rows, "packed", False) else count)
        if getattr(rows, "packed", False):
            ids = np.concatenate(found)
            lengths = np.array([len(one) for one in found])
            made = [{"input_ids": ids, "labels": ids.copy(), "seq_lengths": lengths}]
        else:
            made = [{"input_ids": ids, "labels": ids.copy()} for ids in found]
        return made, [(ids, 1) for ids in found]
    half = _TOKENS // 2
    answers = [name for name in ("chosen_ids", "rejected_ids", "completion_ids") if name in first]
    made = []
    for index in range(min(count, len(rows))):
        row = dict(rows[index])
        made.append({**row, "prompt_ids": row["prompt_ids"][-half:], **{name: row[name][:half] for name in answers}})
    pairs = [(row["prompt_ids"], row[name]) for name in answers for row in made]
    return made, [(np.concatenate([prompt, answer]), max(1, len(prompt))) for prompt, answer in pairs]


def _documents(rows: Any, wanted: int) -> list[Ids]:
    """The first documents of two tokens or more, each cut short."""
    found: list[Ids] = []
    for index in range(min(len(rows), wanted)):
        row = rows[index]
        ends = np.cumsum(row["seq_lengths"]) if "seq_lengths" in row else [len(row["input_ids"])]
        found += [part[:_TOKENS] for part in np.split(np.asarray(row["input_ids"]), ends[:-1]) if len(part) > 1]
    return found[:wanted] or [np.asarray(rows[0]["input_ids"])[:_TOKENS]]


def _all_agree(compared: Compared, args: Any) -> bool:
    differ = torch.tensor([0 if compared.agrees(args) else 1])
    return int(gather(differ).sum()) == 0
