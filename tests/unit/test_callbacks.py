import json
from types import SimpleNamespace

import torch
from trl import SFTConfig

from post_training.models.files import replace_folder
from post_training.training import callbacks
from post_training.training.measure import PeakMemory, TokenCounter
from post_training.training.step_samples import count


def state(step: int, **more) -> SimpleNamespace:
    return SimpleNamespace(global_step=step, epoch=step / 10, max_steps=100, is_world_process_zero=True, **more)


def test_tokens_are_counted_without_padding():
    tokens = TokenCounter(earlier={"tokens": 1000, "trained_tokens": 100, "seconds": 50.0})
    packed = {"input_ids": torch.ones(1, 8), "labels": torch.tensor([[-100, 1, 1, -100, 1, 1, 1, -100]])}
    padded = {**packed, "attention_mask": torch.tensor([[1] * 6 + [0] * 2])}
    pairs = {
        "input_ids": torch.ones(2, 4),
        "attention_mask": torch.ones(2, 4),
        "completion_mask": torch.tensor([[0, 0, 1, 1]] * 2),
    }
    for inputs in (packed, padded, pairs):
        tokens.count(count(inputs))
    tokens.step([15, 7])
    logs = {"loss": 1.0}
    tokens.add_to(logs)
    assert (logs["padding_share"], logs["rank_imbalance"]) == (round(2 / 24, 4), round(15 / 11, 4))
    assert logs["tokens"] == 1000 + 8 + 6 + 8
    assert logs["trained_tokens"] == 100 + 5 + 5 + 4
    assert logs["tokens_per_second"] > 0
    totals = tokens.totals()
    assert totals["tokens"] == 1022
    assert totals["seconds"] >= 50


def test_a_switched_off_count_is_not_logged_but_known():
    tokens, logs = TokenCounter(in_logs=False), {"loss": 1.0}
    tokens.count(count({"input_ids": torch.ones(1, 4), "labels": torch.ones(1, 4)}))
    tokens.add_to(logs)
    assert logs == {"loss": 1.0}
    assert tokens.totals()["tokens"] == 4


def test_metrics_have_one_line_a_step_and_no_summary(tmp_path):
    path = tmp_path / "metrics.jsonl"
    callback = callbacks.MetricsCallback(path, TokenCounter(), PeakMemory(SFTConfig), steps_per_epoch=4)
    callback.on_log(None, state(1), None, logs={"loss": 2.0, "learning_rate": 0.1, "num_tokens": 7, "epoch": 0.1})
    callback.on_log(None, state(1), None, logs={"train_runtime": 3.0})
    other = state(1)
    other.is_world_process_zero = False
    callback.on_log(None, other, None, logs={"loss": 2.0})
    (line,) = [json.loads(text) for text in path.read_text().splitlines()]
    assert line.pop("seconds") >= 0 and line.pop("peak_memory_bytes") >= 0
    assert line == {"step": 1, "epoch": 0.25, "loss": 2.0, "learning_rate": 0.1}


def test_lines_after_the_resumed_step_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert callbacks.cut_metrics(path, 0, 0.0) == {"lost_steps": 0, "lost_seconds": 0.0, "last_seen": None}
    assert not path.exists()
    path.write_text("".join(f'{{"step": {step}, "seconds": {step / 2}}}\n' for step in range(1, 6)) + '{"step": 6, "lo')
    written = path.stat().st_mtime
    lost = callbacks.cut_metrics(path, 3, 1.6)
    assert lost == {"lost_steps": 2, "lost_seconds": 0.9, "last_seen": round(written, 3)}
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_progress_is_a_plain_line_now_and_then(capsys):
    callback = callbacks.ProgressCallback("sft", TokenCounter(), every_seconds=3600)
    callback.on_train_begin(None, state(0), None)
    for step in (1, 2, 50, 100):
        callback.on_log(None, state(step), None, logs={"loss": 2.5})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["sft: step 1/100", "sft: step 100/100"]
    assert lines[1].endswith("loss 2.5000, 0 tokens/s, 0:00 left")


def test_a_folder_is_replaced_whole(tmp_path):
    new, target = tmp_path / ".step-2", tmp_path / "step-2"
    for path, text in ((new, "new"), (target, "old")):
        path.mkdir()
        (path / "file").write_text(text)
    replace_folder(new, target)
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]
    assert (target / "file").read_text() == "new"


def test_peak_memory_of_an_interval_and_of_the_run():
    peak = PeakMemory(SFTConfig)
    before = peak.since_last()["peak_memory_bytes"]
    block = torch.ones(64 << 20, dtype=torch.uint8)
    assert peak.since_last()["peak_memory_bytes"] >= before + (60 << 20)
    del block
    most = peak.so_far()["peak_memory_bytes"]
    peak.since_last()
    assert peak.since_last()["peak_memory_bytes"] < most - (50 << 20) and peak.so_far()["peak_memory_bytes"] == most
    assert peak.facts({"peak_memory_bytes": most + 1}) == {"peak_memory_bytes": most + 1, "device_name": "CPU"}
