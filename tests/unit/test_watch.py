"""Decisions at a step's end, from records as ranks send them."""

import math
import signal
from types import SimpleNamespace

import pytest
import torch

from post_training.core.errors import UserError
from post_training.run_dir.failures import PeerError
from post_training.run_dir.stop import StopRequest
from post_training.training.exchange import Record
from post_training.training.step_monitor import SpikeRule, StepWatch, _check_numbers
from post_training.training.step_samples import KEY, Seen


class FakeTrainer:
    """What a watch takes hold of."""

    def __init__(self, losses, norms):
        self.losses, self.norms = iter(losses), iter(norms)
        self.args = SimpleNamespace(device="cpu", process_index=0, fp16=False)
        self.train_dataset, self.data_collator = [], None
        self.training_step = lambda model, inputs: torch.tensor(next(self.losses))
        self._get_grad_norm = lambda model: next(self.norms)


def watch(losses, norms=(), request=None, samples=None):
    trainer = FakeTrainer(losses, norms or [1.0] * len(losses))
    return StepWatch(
        trainer,
        request or StopRequest(),
        samples,
        SpikeRule("sft", 6.0, []),
        None,
        lambda row: [f"gsm8k row {row * 10}"],
    )


def take_step(watch, step, rows, should_save=False):
    """One optimizer step of as many micro-batches as there are rows."""
    control = SimpleNamespace(should_save=should_save, should_training_stop=False)
    for row in rows:
        watch.trainer.training_step(None, {KEY: Seen([row], row)})
    watch.trainer._get_grad_norm(None)
    watch.on_pre_optimizer_step(watch.trainer.args, SimpleNamespace(global_step=step - 1), control)
    watch.on_step_end(watch.trainer.args, SimpleNamespace(global_step=step, max_steps=100), control)
    return control


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_names_the_rows(bad):
    seen = watch([1.0, 1.0, bad, 1.0])
    take_step(seen, 1, [0, 1])
    message = rf"loss is {bad}, not a finite number, at step 2 on rank 0; its rows of the mix: 2, 3, of gsm8k row 20, gsm8k row 30\."
    with pytest.raises(UserError, match=message):
        take_step(seen, 2, [2, 3])  # a later good micro-batch does not hide it


def test_so_does_the_gradients_norm_but_not_with_float16():
    with pytest.raises(UserError, match="the gradient's norm is inf, not a finite number, at step 1 on rank 0"):
        take_step(watch([1.0], [math.inf]), 1, [0])
    scaled = watch([1.0], [math.inf])
    scaled.trainer.args.fp16 = True
    take_step(scaled, 1, [0])


def test_the_rank_that_has_it_tells_and_the_others_follow():
    record = Record(7, [0, 0], [1, 1], [0, 0], [1.0, math.nan], [1.0, 1.0])
    with pytest.raises(UserError, match="on rank 1"):
        _check_numbers(record, [4], SimpleNamespace(process_index=1, fp16=False), lambda row: [])
    with pytest.raises(PeerError):
        _check_numbers(record, [5], SimpleNamespace(process_index=0, fp16=False), lambda row: [])


def test_a_signal_saves_and_stops_at_the_end_of_the_step():
    request = StopRequest()
    seen = watch([1.0] * 3, request=request)
    control = take_step(seen, 1, [0])
    assert not (control.should_save or control.should_training_stop)
    request.received += [signal.SIGTERM, signal.SIGUSR1]
    control = take_step(seen, 2, [1])
    assert control.should_save
    assert control.should_training_stop
    assert seen.stopped == signal.SIGUSR1  # a run that is warned of its limit is to be started again


def test_a_spike_is_a_warning_once_there_is_something_to_compare_with(capsys):
    rule = SpikeRule("sft", 6.0, [])
    for step in range(1, 64):
        rule.look(step, 2.0 + 0.1 * (step % 2))
    rule.look(64, 9.0)
    assert capsys.readouterr().out == ""
    rule = SpikeRule("sft", 6.0, [*list(rule.losses)[:-1], 2.05])
    rule.look(65, 2.3)
    assert capsys.readouterr().out == ""
    rule.look(66, 9.0)
    said = capsys.readouterr().out
    assert said.startswith("sft: warning: loss 9 at step 66 is more than 6 standard deviations (")
    SpikeRule("sft", None, [2.0] * 128).look(1, 1e9)
    assert capsys.readouterr().out == ""
