"""A model of two layers like one that is given, in a folder, and a step of training with it on the CPU."""

import contextlib
import gc
import io
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from post_training import methods
from post_training.config.batch import BatchPlan, Topology
from post_training.core.errors import UserError, brief
from post_training.data.loss_mask import IGNORED
from post_training.preflight.probe import ZeroReference
from post_training.preflight.subject import holds_reference

_LENGTHS = (11, 13)


class NoTwin(Exception):
    """A two-layer model of this configuration cannot be built, or computes nothing: which says nothing of the model itself."""


@dataclass(frozen=True)
class Step:
    """What a step of the twin has said."""

    loss: float
    """As it is logged."""
    said: str
    """Of the loss before the step, by training's forward pass and by the model's own."""


@contextlib.contextmanager
def twin_folder(start: Path, view: dict[str, Any]) -> Iterator[tuple[Path, Path]]:
    """A temporary model folder with two layers of random weights and all other files of `start`, and its manifest.

    Raises NoTwin where Transformers cannot build or compute such a model.
    """
    import torch
    from transformers import AutoConfig

    from post_training.models.packing_probe import random_model, two_layers

    auto_config: Any = AutoConfig
    trust = bool(view["model"]["trust_remote_code"])
    with tempfile.TemporaryDirectory(prefix="twin-") as place:
        folder, manifest = Path(place) / "model", Path(place) / "manifest.json"
        folder.mkdir()
        with _quiet():
            try:
                whole: Any = auto_config.from_pretrained(start, trust_remote_code=trust)
                config = two_layers(whole.get_text_config())
                config.name_or_path = str(start)
                with torch.random.fork_rng(devices=[]):
                    model: Any = random_model(config, "eager", trust)
                    with torch.no_grad():
                        tokens = torch.arange(3, 16)[None]
                        logits, other = (
                            model(input_ids=ids, use_cache=False).logits[0, :-1]
                            for ids in (tokens, torch.cat([tokens[:, :-1], tokens[:, :1]], dim=1))
                        )
            except Exception as error:  # each family has its own
                raise NoTwin(f"no two-layer model could be built: {brief(error)}") from None
            if float((logits - other).abs().max()) > 1e-3 * float(logits.abs().max()):
                kind = f"{config.model_type} sees the tokens after the one that it predicts from"
                raise UserError(f"{start}: {kind}; name a causal language model, or set is_decoder in its config.json")
            model.config.dtype = view["model"]["dtype"]
            model.save_pretrained(folder)
        others = [path for path in start.iterdir() if path.is_file() and not (folder / path.name).exists()]
        for path in others:
            if "safetensors" not in path.name and not path.name.startswith("pytorch_model"):
                shutil.copyfile(path, folder / path.name)
        manifest.write_text(json.dumps({"folder": "model"}))
        yield folder, manifest


def take_step(view: dict[str, Any], folder: Path, manifest: Path) -> Step:
    """One step of training, as a rank takes it, and a save. Raises what the training would raise."""
    from transformers import TrainerCallback

    from post_training.run_dir.stop import StopRequest
    from post_training.training.measure import TokenCounter
    from post_training.training.run import arguments_of, make_trainer
    from post_training.training.step_monitor import StepMonitor
    from post_training.training.trainer import trainer_class

    class OneStep(TrainerCallback):
        """Ends the run after its first step; the schedule is that of the full run."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = True

    method, size = view["method"], min(2, view["training"]["per_device_train_batch_size"])
    inputs = {"model": manifest}
    if holds_reference(view) and view[method].get("ref_model_name_or_path"):
        inputs["reference_model"] = manifest
    task: Any = SimpleNamespace(inputs=inputs, directory=folder.parent)
    rows = Rows(method, size, packed=methods.packs(view))
    stored = ZeroReference(folder) if methods.stored_reference(view) is not None else None
    with _quiet(), _own_accelerator():
        plan = BatchPlan(Topology(1, 1, "CPU"), size, 1, size, None)
        changed = {"save_strategy": "no", "use_cpu": True}
        args = arguments_of(task, view, plan, 100, **changed)
        monitor = StepMonitor(args.device, StopRequest(), rows.sources)
        trainer = make_trainer(
            trainer_class(method), task, view, args, rows, stored, tokens=TokenCounter(), monitor=monitor
        )
        # The twin has a small vocabulary.
        if hasattr(trainer.data_collator, "pad_token_id"):
            trainer.data_collator.pad_token_id = 0
        trainer.model.config.pad_token_id = 0
        trainer.add_callback(OneStep())
        trainer.train()
        trainer.save_model(str(folder.parent / "saved"))
        loss = next(float(line["loss"]) for line in trainer.state.log_history if "loss" in line)
    return Step(loss, trainer.loss_check.said)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what libraries and the training print."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def _own_accelerator() -> Iterator[None]:
    """Accelerate keeps one number format for a process; stages may have several."""
    from accelerate.state import AcceleratorState, GradientState

    def reset() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    reset()
    gc.freeze()  # its trainer collects garbage, among a million objects of the libraries
    try:
        yield
    finally:
        gc.unfreeze()
        reset()


class Rows(Sequence[Any]):
    """Rows of random tokens, as a trainer takes them from a mix."""

    def __init__(self, method: str, count: int, *, packed: bool) -> None:
        self.packed, draw = packed, np.random.default_rng(0)
        kind = methods.load(method).ROWS

        def ids(length: int) -> Any:
            return draw.integers(3, 128, length)

        def row(number: int) -> dict[str, Any]:
            if kind == "messages":
                lengths = np.array(_LENGTHS) if packed else np.array([_LENGTHS[number % 2]])
                tokens = ids(int(lengths.sum()))
                labels = np.where(np.arange(len(tokens)) == 0, IGNORED, tokens)
                return {"input_ids": tokens, "labels": labels} | ({"seq_lengths": lengths} if packed else {})
            if kind == "preference":
                return {"prompt_ids": ids(7), "chosen_ids": ids(6), "rejected_ids": ids(4)}
            return {"prompt_ids": ids(7), "completion_ids": ids(5 + number), "label": np.array([number % 2])}

        self._rows = [row(number) for number in range(count)]
        self.columns = list(self._rows[0])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return dict(self._rows[index])

    def tokens(self, indices: Sequence[int]) -> Any:
        """Tokens of each row."""
        return np.array([sum(len(ids) for ids in self._rows[index].values()) for index in indices])

    def document(self, index: int) -> int:
        """Each row is a document."""
        return index

    def distinct(self) -> "Rows":
        """Each row is there once."""
        return self

    def sources(self, index: int) -> list[str]:
        """Where a row comes from."""
        return [f"row {index} of the twin"]
