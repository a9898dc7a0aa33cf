"""Body of the rule `probe`: a few real steps of one stage at its longest batch, on one device, with the model that the pipeline
starts from. Predicted and measured cost of the same steps are in `preflight.json` (see the package).
"""

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from post_training import methods
from post_training.config import batch, resolve
from post_training.config.batch import Topology
from post_training.core.errors import UserError
from post_training.core.fingerprint import write_atomically
from post_training.core.task import Task
from post_training.run_dir import predictions

_RESULT = "probe.json"
_SAMPLED = 4096
"""Packed rows among which the longest is searched: they are nearly equal."""


def run(task: Task) -> int:
    """Start the rank, and write what it has measured. Returns its exit code."""
    from post_training.launch.environment import library_environment, local_start
    from post_training.launch.launcher import rank_command
    from post_training.launch.processes import run_together
    from post_training.preflight import predicted
    from post_training.preflight.measurements import batch_of, work
    from post_training.preflight.micro_batch import decide
    from post_training.run_dir import failures
    from post_training.run_dir.stop import REQUEST

    task.saved()  # the rank decides by itself
    topology = one_device(resolve(task.runtime["pipeline"]).last)
    decide(task, topology)
    view = resolve(task.runtime["pipeline"]).last
    (task.directory / "logs").mkdir(parents=True, exist_ok=True)
    failed = task.directory / "logs" / "failures"
    failures.clear(failed)
    (task.directory / _RESULT).unlink(missing_ok=True)

    libraries = library_environment(view, task.directory, topology.device, task.inputs.get("kernel"))
    _check_node(task, view, topology)
    commands, environments = local_start(topology, view, rank_command(task.saved()), libraries)
    # So that freed memory goes back to the system, also on the CPU.
    environments[0].setdefault("MALLOC_MMAP_THRESHOLD_", str(256 << 10))
    with REQUEST:
        ended = run_together(commands, environments, REQUEST)
    if ended.first is not None or not (task.directory / _RESULT).is_file():
        for failure in failures.read(failed)[:1]:
            print((failure.trace or failure.line).rstrip(), flush=True)
        code = ended.code or 1
        return code if code > 0 else 128 - code
    subject = probed_subject(task, view, topology)
    done = work(subject) | batch_of(subject.view)
    measured = json.loads((task.directory / _RESULT).read_text(encoding="utf-8"))
    facts = {"predicted": predicted(subject), "measured": done | measured}
    predictions.write(task.directory, {"stage": view["stage"], "checks": [], "work": done, **facts})
    print(side_by_side(facts["predicted"], measured), flush=True)
    task.finish(probed=view["stage"], **facts)
    return 0


def _check_node(task: Task, view: dict[str, Any], topology: Topology) -> None:
    """What the preflight on a login node cannot see. Raises UserError with a line for each failure, and prints the rest."""
    from post_training.preflight import gpu
    from post_training.preflight.check import FAILURE, only_warn
    from post_training.preflight.node import this_node

    subject = probed_subject(task, view, topology)
    subject.kernel = task.inputs.get("kernel")
    subject.node = this_node() if topology.device == "GPU" else None
    found = only_warn(gpu.checks(subject), view["preflight"]["only_warn"])
    print("\n".join(one.line() for one in found), flush=True)
    failures = [one.line() for one in found if one.verdict == FAILURE]
    if failures:
        raise UserError("\n".join(failures))


def one_device(view: dict[str, Any]) -> Topology:
    """One rank on what this machine has."""
    return Topology(1, 1, batch.local_topology(view).device)


def probed_view(view: dict[str, Any], steps: int) -> dict[str, Any]:
    """The stage's view for so many steps of two micro-batches, so that gradients are kept between them as in the run."""
    per_device = view["training"]["per_device_train_batch_size"]
    alone = view["training"]["effective_batch_size"] <= per_device
    lengths = dict.fromkeys(batch.LENGTHS) | {"max_steps": steps}
    training = {**view["training"], **lengths, "effective_batch_size": per_device * (1 if alone else 2)}
    return {**view, "training": training}


def probed_subject(task: Task, view: dict[str, Any], topology: Topology) -> Any:
    """The probe as preflight would check it."""
    from post_training.preflight.micro_batch import subject_of

    return subject_of(task, probed_view(view, task.config["steps"]), topology)


def side_by_side(predicted: dict[str, Any], measured: dict[str, Any]) -> str:
    """A line for each number that is in both."""
    lines = []
    for key, value in measured.items():
        expected = predicted.get(key)
        if isinstance(value, int | float) and isinstance(expected, int | float) and expected:
            lines.append(f"{key}: predicted {expected:,.6g}, measured {value:,.6g} ({value / expected:.2f} of it)")
    return "\n".join(lines)


def probe_rank(task: Task) -> None:
    """Take the steps and write what they took. Raises UserError as a training would."""
    from post_training.run_dir.stop import StopRequest
    from post_training.training.measure import PeakMemory, TokenCounter
    from post_training.training.run import arguments_of, make_trainer
    from post_training.training.step_monitor import StepMonitor
    from post_training.training.trainer import trainer_class

    steps = int(task.config["steps"])
    view = probed_view(resolve(task.runtime["pipeline"]).last, steps)
    name = view["method"]
    topology = batch.topology_from_environment()
    plan = batch.batch_plan(view, name, topology)
    args = arguments_of(task, view, plan, steps, save_strategy="no", report_to=["none"], logging_steps=steps + 1)
    rows = longest_rows(task.inputs["data"], steps * plan.rows)
    peak = PeakMemory(type(args))
    needed = "reference_model" not in task.inputs and methods.stored_reference(view) is not None
    stored = ZeroReference(task.inputs["data"]) if needed else None
    tokens = TokenCounter()
    monitor = StepMonitor(args.device, StopRequest(), lambda index: rows.rows.sources(rows.number(index)))
    trainer = make_trainer(trainer_class(name), task, view, args, rows, stored, tokens=tokens, monitor=monitor)
    clock = _clock(tokens)
    trainer.add_callback(clock)
    trainer.train()
    write_atomically(task.directory / _RESULT, json.dumps(clock.measured(peak, topology)))


def _clock(tokens: Any) -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """Seconds and tokens of each step."""

        def __init__(self) -> None:
            self.marks: list[tuple[float, int]] = []

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.marks = [(time.monotonic(), 0)]

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            _synchronize()
            self.marks.append((time.monotonic(), tokens.totals()["tokens"]))

        def measured(self, peak: Any, topology: Topology) -> dict[str, Any]:
            """The first step warms up, and is reported by itself."""
            pairs = list(zip(self.marks, self.marks[1:], strict=False))
            seconds = [after[0] - before[0] for before, after in pairs]
            settled = pairs[1:] or pairs
            rates = [(after[1] - before[1]) / (after[0] - before[0]) for before, after in settled]
            return {
                "steps": len(pairs),
                "tokens": self.marks[-1][1],
                "tokens_per_second": round(statistics.median(rates), 1),
                "step_seconds": round(statistics.median(seconds[1:] or seconds), 4),
                "first_step_seconds": round(seconds[0], 4),
                **peak.so_far(),
                "world_size": topology.world_size,
                "hardware": peak.device_name,
            }

    return Clock()


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def longest_rows(path: Path, count: int) -> "LongestRows":
    """`count` rows of a mix, the longest ones over and over."""
    import numpy as np

    from post_training.data.view import open_rows

    rows = open_rows(path)
    lengths = rows.lengths()
    if rows.packed:
        sums = [int(lengths[rows.members(index)].sum()) for index in range(min(rows.rows_per_epoch, _SAMPLED))]
        return LongestRows(rows, np.argsort(sums)[::-1][: max(1, min(count, 64))].tolist(), count)
    return LongestRows(rows.distinct(), np.argsort(lengths)[::-1][: max(1, min(count, 64))].tolist(), count)


class LongestRows(Sequence[Any]):
    """Some rows of a mix, again and again, as a trainer takes them."""

    def __init__(self, rows: Any, numbers: list[int], count: int) -> None:
        self.rows, self.numbers, self._count = rows, numbers, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return self.rows[self.number(index)]

    def number(self, index: int) -> int:
        """Number of the row in the mix."""
        return self.numbers[index % len(self.numbers)]

    def tokens(self, indices: Sequence[int]) -> Any:
        """As of the mix's rows."""
        return self.rows.tokens([self.number(index) for index in indices])

    def document(self, index: int) -> int:
        """As of the mix's rows."""
        return int(self.rows.document(self.number(index)))

    def distinct(self) -> Any:
        """As of the mix's rows."""
        return self.rows.distinct()


class ZeroReference:
    """In place of stored log-probabilities, whose values cost nothing."""

    of_start = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def join(self, rows: Any) -> Any:
        """The rows with a reference of zeros."""
        import numpy as np

        from post_training.methods.dpo.reference import RowsWithReference

        return RowsWithReference(rows, np.zeros((len(rows.distinct()), 2), np.float32))
