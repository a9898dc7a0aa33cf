"""Decisions at a step's end, from the records of all ranks."""

import math
import signal
from types import SimpleNamespace

import pytest
import torch

from post_training.core.errors import UserError
from post_training.run_dir.failures import PeerError
from post_training.run_dir.stop import StopRequest
from post_training.training.step_monitor import SpikeRule, StepMonitor, StepRecord, check_finite
from post_training.training.step_samples import SamplesLog, Seen

ARGS = SimpleNamespace(process_index=0, fp16=False)


def monitor(request=None, **options):
    return StepMonitor(torch.device("cpu"), request or StopRequest(), lambda row: [f"gsm8k row {row * 10}"], **options)


def take_step(monitor, step, losses, norm=1.0, args=ARGS):
    """One optimizer step of as many micro-batches as there are rows: row -> loss."""
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    for row, loss in losses.items():
        monitor.add(Seen([row], row), torch.tensor(loss))
    monitor.grad_norm = norm
    monitor.on_step_end(args, SimpleNamespace(global_step=step, max_steps=100), control)
    return control


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_nan_or_inf_names_the_rows(bad):
    checked = monitor()
    take_step(checked, 1, {0: 1.0, 1: 1.0})
    message = rf"loss is {bad}, not a finite number, at step 2 on rank 0; its rows of the mix: 2, 3, of gsm8k row 20, gsm8k row 30\."
    with pytest.raises(UserError, match=message):
        take_step(checked, 2, {2: bad, 3: 1.0})  # a later good micro-batch does not hide it


def test_so_does_the_gradients_norm_but_not_with_float16():
    with pytest.raises(UserError, match="the gradient's norm is inf, not a finite number, at step 1 on rank 0"):
        take_step(monitor(), 1, {0: 1.0}, math.inf)
    take_step(monitor(), 1, {0: 1.0}, math.inf, SimpleNamespace(process_index=0, fp16=True))


def test_the_rank_that_has_it_reports_it_and_the_others_follow():
    record = StepRecord(7, [0, 0], [1, 1], [0, 0], [5, 5], [1.0, math.nan], [1.0, 1.0])
    with pytest.raises(UserError, match="on rank 1"):
        check_finite(record, [4], SimpleNamespace(process_index=1, fp16=False), lambda row: [])
    with pytest.raises(PeerError):
        check_finite(record, [5], SimpleNamespace(process_index=0, fp16=False), lambda row: [])


def test_a_record_is_exact():
    """Hashes are int64 and losses float64, in one collective."""
    one = monitor()
    one.add(Seen([3, 4], -(2**63)), torch.tensor(0.1))
    one.grad_norm = torch.tensor(1e-30)
    record = one.gather(5)
    assert (record.step, record.signal, record.rows, record.digest) == (5, [0], [2], [-(2**63)])
    assert record.loss == [float(torch.tensor(0.1))] and record.grad_norm == [float(torch.tensor(1e-30))]


def test_a_signal_saves_and_stops_at_the_end_of_the_step():
    request = StopRequest()
    checked = monitor(request)
    assert not checked.stop_requested()
    control = take_step(checked, 1, {0: 1.0})
    assert not (control.should_save or control.should_training_stop)
    request.received += [signal.SIGTERM, signal.SIGUSR1]
    control = take_step(checked, 2, {1: 1.0})
    assert control.should_save and control.should_training_stop
    assert checked.stopped == signal.SIGUSR1  # a run that is warned of its limit is to be started again
    assert monitor(request).stop_requested()


def test_a_step_taken_again_that_saw_other_rows_ends_the_run(tmp_path):
    samples = SamplesLog(tmp_path / "samples.jsonl")
    take_step(monitor(samples=samples), 1, {0: 1.0, 1: 1.0})
    with pytest.raises(UserError, match="step 1 saw other rows"):
        take_step(monitor(samples=samples), 1, {0: 1.0, 2: 1.0})


def test_a_spike_is_a_warning_once_there_is_something_to_compare_with(capsys):
    rule = SpikeRule("sft", 6.0, [])
    for step in range(1, 64):
        rule.check(step, 2.0 + 0.1 * (step % 2))
    rule.check(64, 9.0)
    assert capsys.readouterr().out == ""
    rule = SpikeRule("sft", 6.0, [*list(rule.losses)[:-1], 2.05])
    rule.check(65, 2.3)
    assert capsys.readouterr().out == ""
    rule.check(66, 9.0)
    said = capsys.readouterr().out
    assert said.startswith("sft: warning: loss 9 at step 66 is more than 6 standard deviations (")
    SpikeRule("sft", None, [2.0] * 128).check(1, 1e9)
    assert capsys.readouterr().out == ""
