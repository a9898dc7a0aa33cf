"""The held-out loss during training, every `evaluation.during_training_steps`: what the number of epochs is chosen by.

The rows are the mix's held-out ones (`data.eval_fraction`, a dataset's `eval_split`), the same `evaluation.max_samples` of
them that the stage `evaluate` takes, each once and none packed, so that the last value is what that stage measures of the exported
model. The forward pass is training's own, with its number formats, through TRL's fused output layer, which never holds all logits.
Nothing is drawn from a random number generator: the weights of a run do not depend on how often it is evaluated.

- Rows of messages: `eval_loss`, the mean negative log-likelihood of a token with loss, in nats.
- Pairs: `eval_rewards/accuracies`, `eval_rewards/margins`, `eval_rewards/chosen` and `eval_rewards/rejected` as TRL defines
  them, and `eval_loss`, the DPO loss (sigmoid) whatever `loss_type` trains with. The reference's log-probabilities of these pairs
  are the policy's own at step 0, kept in the run directory.
- Pairs of a reward model: `eval_loss`, the Bradley-Terry loss with the pairs' margins, `eval_accuracy` and `eval_margin`, named as TRL names those of training.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback

from post_training import methods
from post_training.core.errors import UserError
from post_training.data import shapes
from post_training.data.collate import PaddedCollator
from post_training.data.loss_mask import IGNORED
from post_training.data.shapes.preference import margin
from post_training.data.view import open_rows
from post_training.methods.dpo.reference import write_array
from post_training.training import ranks

# Tokens of a forward pass, padding counted; a longer sequence is a pass of its own.
_BATCH_TOKENS = 8192


@dataclass
class Record:
    """What a checkpoint's marker keeps, so that a resumed run decides as an undisturbed one."""

    step: int = -1
    """The last step that was evaluated."""
    best_step: int = -1
    best_loss: float = float("inf")
    since_best: int = 0
    """Evaluations in a row that were not better by `min_delta`."""
    stopped: bool = False
    """Whether early stopping ended the run."""


class HeldOut(TrainerCallback):
    """Evaluates at step 0, every so many steps, and at the last one; stops early and has the best step saved where asked."""

    def __init__(self, trainer: Any, view: dict[str, Any], mix: Path, directory: Path, earlier: dict[str, Any]) -> None:
        """Make it on every rank.

        Args:
            trainer: TRL's, with our mixin.
            view: the stage's flat configuration.
            mix: manifest of the mix, with held-out rows.
            directory: of the run.
            earlier: `facts` of the checkpoint that the run resumes from.
        """
        self.trainer, self.every = trainer, view["evaluation"]["during_training_steps"]
        self.stop = view["training"]["early_stopping"]
        self.name, self.keeps_best = view["stage"], view["export"]["checkpoint"] == "best"
        self.beta = view[view["method"]].get("beta")
        self.reference_file = directory / "logs" / "held_out_reference.npy"
        self.reference: np.ndarray | None = None
        self.record = Record(**earlier.get("held_out") or {})
        documents = open_rows(mix, part="eval").distinct()
        shape = shapes.of_columns(documents.columns)
        numbers = np.random.default_rng(0).permutation(len(documents))[: view["evaluation"]["max_samples"]]
        rows = [documents[int(number)] for number in numbers]
        self.sequences = [sequence for row in rows for sequence in shape.sequences(row)]
        self.wanted = np.array([margin(row) for row in rows])
        """The margin that each pair is to have; 0 where it has none."""
        self.are_pairs = self.sequences[0][0] == "chosen"
        self.ranks = not methods.answers(view["method"])
        self.compares = self.are_pairs and not self.ranks
        """Whether pairs are compared with a reference."""

    def facts(self) -> dict[str, Any]:
        """For a checkpoint's marker."""
        return {"held_out": asdict(self.record)}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Where a run begins, and where one resumes that was stopped before the evaluation of its step."""
        if state.global_step > 0 and self.compares:
            if not self.reference_file.is_file():
                raise UserError(
                    f"{self.reference_file}: is missing, so held-out pairs have no reference: this run began without "
                    "evaluation.during_training_steps; set it to null again, or start another run"
                )
            self.reference = np.load(self.reference_file, allow_pickle=False)
        if self.record.step < state.global_step and self._is_due(state):
            self._evaluate(state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A run that is asked to stop saves at once, and evaluates when it resumes."""
        if self._is_due(state) and self.trainer.monitor.stopped is None:
            self._evaluate(state, control)

    def _is_due(self, state: Any) -> bool:
        return state.global_step % self.every == 0 or state.global_step >= state.max_steps

    def _evaluate(self, state: Any, control: Any) -> None:
        began = time.monotonic()
        measured = self.measure()
        self.trainer.tokens.leave_out(time.monotonic() - began)
        record, loss = self.record, measured["eval_loss"]
        record.step = state.global_step
        if record.step > 0:
            self._decide(loss, control)
        if state.is_world_process_zero:
            accuracy = measured.get("eval_rewards/accuracies", measured.get("eval_accuracy"))
            more = "" if accuracy is None else f", preference accuracy {accuracy:.3f}"
            best = f"; the best is {record.best_loss:.4f} at step {record.best_step:,}" if record.step > 0 else ""
            print(f"{self.name}: step {record.step:,}, held-out loss {loss:.4f}{more}{best}", flush=True)
            if record.stopped:
                print(
                    f"{self.name}: stops early: {record.since_best} evaluations without a better held-out loss",
                    flush=True,
                )
        # Past TRL's own `log`, which would put the training metrics of unfinished intervals into this line; and any log makes
        # Transformers think that the step's own is done.
        is_log_due = control.should_log
        Trainer.log(self.trainer, measured)
        control.should_log = is_log_due

    def _decide(self, loss: float, control: Any) -> None:
        """The best step so far, whether it is saved, and whether training ends."""
        record = self.record
        better, needed = loss < record.best_loss, self.stop["min_delta"] if self.stop else 0.0
        record.since_best = 0 if loss < record.best_loss - needed else record.since_best + 1
        if better:
            record.best_step, record.best_loss = record.step, loss
        if self.stop and record.since_best >= self.stop["patience"]:
            record.stopped = control.should_training_stop = control.should_save = True
        if self.keeps_best and better:
            control.should_save = True

    def measure(self) -> dict[str, float]:
        """The metrics at the current weights. Every rank must call it."""
        logps = self.log_probabilities()
        if not np.isfinite(logps).all():
            what = "score" if self.ranks else "log-probability"
            raise UserError(f"{self.name}: the {what} of a held-out row is NaN or Inf; lower training.learning_rate")
        if self.ranks:
            margins = logps[::2] - logps[1::2]
            accuracy, mean = float((margins > 0).mean()), float(margins.mean())
            loss = float(np.logaddexp(0, self.wanted - margins).mean())
            return {"eval_loss": loss, "eval_accuracy": accuracy, "eval_margin": mean}
        if not self.are_pairs:
            tokens = sum(int(trained[1:].sum()) for _, _, trained in self.sequences)
            return {"eval_loss": float(-logps.sum() / max(tokens, 1))}
        logps = logps.astype(np.float32)  # as the reference's file has them
        if self.reference is None:
            self.reference = logps
            if self.trainer.args.process_index == 0:
                write_array(self.reference_file, logps)
        rewards = (self.beta * (logps - self.reference)).reshape(-1, 2)
        margins = rewards[:, 0] - rewards[:, 1]
        return {
            "eval_loss": float(np.logaddexp(0, -margins).mean()),
            "eval_rewards/accuracies": float((margins > 0).mean()),
            "eval_rewards/margins": float(margins.mean()),
            "eval_rewards/chosen": float(rewards[:, 0].mean()),
            "eval_rewards/rejected": float(rewards[:, 1].mean()),
        }

    def log_probabilities(self) -> np.ndarray:
        """Summed log-probability of the tokens with loss of each sequence, nats `[sequences]`, float64, on every rank.

        Of a reward model its score.
        """
        model, device = self.trainer.model, self.trainer.args.device
        world, rank = self.trainer.args.world_size, self.trainer.args.process_index
        batches = self._batches()
        sums = torch.zeros(len(self.sequences), dtype=torch.float64)
        was_training = model.training
        model.eval()
        # Under ZeRO-3 every rank holds a part of each layer: all take the same number of passes.
        for turn in range(-(-len(batches) // world)):
            number = turn * world + rank
            members = batches[number] if number < len(batches) else batches[0][:1]
            inputs = {name: tensor.to(device) for name, tensor in self._inputs(members).items()}
            with torch.no_grad():
                found = self._of_model(model, inputs).cpu()
            if number < len(batches):
                sums[members] = found
        model.train(was_training)
        return np.asarray(ranks.gather(sums).cpu().sum(dim=0).numpy())

    def _of_model(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.ranks:
            scores: torch.Tensor = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
            return scores[:, 0].double()
        log_probs: torch.Tensor = model(**inputs, fused_lm_head=True).log_probs
        return log_probs.double().sum(dim=1)

    def _batches(self) -> list[list[int]]:
        """Numbers of sequences in batches of like lengths."""
        order = sorted(range(len(self.sequences)), key=lambda number: len(self.sequences[number][1]), reverse=True)
        batches: list[list[int]] = []
        for number in order:
            longest = len(self.sequences[batches[-1][0]][1]) if batches else 0
            if not batches or longest * (len(batches[-1]) + 1) > _BATCH_TOKENS:
                batches.append([])
            batches[-1].append(number)
        return batches

    def _inputs(self, members: list[int]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` and `labels`, int64 `[sequences, longest]`."""
        sequences = [self.sequences[number] for number in members]
        rows = [{"input_ids": ids, "labels": np.where(trained, ids, IGNORED)} for _, ids, trained in sequences]
        return PaddedCollator(self.trainer.processing_class.pad_token_id or 0)(rows)
