"""Lines of progress."""

import pytest

from post_training.core import progress
from post_training.core.format import duration, folded


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0:00"), (35, "0:35"), (725, "12:05"), (10810, "3:00:10")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_a_line_now_and_then(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    made = progress.Progress("transform", "rows", 20_000)
    for now[0], done in ((104.0, 1), (110.0, 10_000), (112.0, 15_000)):
        made.update(done)
    assert capsys.readouterr().err == "transform: 10,000 of 20,000 rows, 1,000 rows/s, 0:10 left\n"
    slow = progress.Progress("mix: order", "epochs")
    now[0] = 132.0
    slow.update(2)
    assert capsys.readouterr().err == "mix: order: 2 epochs, 0.1 epochs/s\n"


def test_a_message_is_folded_between_words_and_a_path_stays_in_one_piece():
    path = "/scratch/" + "p" * 90
    lines = folded(f"sft failed: no such key\n\n  log of the job, all of it: {path}", 20).split("\n")
    assert lines == ["sft failed: no such", "key", "", "  log of the job,", "  all of it:", f"  {path}"]
