"""Tables fit a terminal of 80 columns: a line a row, numbers in full."""

import io

from rich.console import Console

from post_training.inspection.stats import PERCENTILES, as_tables
from post_training.lineage.show import show_differences
from post_training.preflight.show import print_findings


def lines_of(*printed, width=80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(*printed)
    return console.file.getvalue().splitlines()


def test_token_stats():
    numbers = {"source_rows": 1_234_567, "examples": 1_234_000, "tokenized": 1_233_000, "tokens": 987_654_321}
    lengths = {**{f"p{p}": 12_345 for p in PERCENTILES}, "longest": 131_072}
    rest = {"used_rows": 1_200_000, "used_tokens": 912_345_678, "share": 0.5, "held_out": 10_000, "trained_share": 0.25}
    entry = {
        "dataset": "a-dataset-with-a-name-of-forty-characters",
        **numbers,
        **lengths,
        **rest,
        "dropped": {"too_long": 1_000},
    }
    found = lines_of(as_tables([entry, entry | {"dataset": "b", "dropped": {}}], "helpdesk: data of sft"))
    assert max(map(len, found)) <= 80
    assert sum("1,234,567" in line and "1,200,000" in line and "50.0%" in line for line in found) == 2
    assert sum("987,654,321" in line and "912,345,678" in line and "131,072" in line for line in found) == 2
    assert "b: dropped none" in found


def test_what_a_preflight_predicts():
    cost = {"peak_memory_bytes": 40 << 30, "hours": 12.5, "tokens": 1_234_567_890, "export_bytes": 3 << 30}
    check = {"name": "resources.memory", "value": "40 GiB", "stage": "dpo", "runs": ["a"], "remedy": "use more GPUs"}
    facts = {
        "checks": [check | {"verdict": "warning"}, check | {"verdict": "ok"}],
        "trainings": {name: {"stage": name, "runs": ["a"], "predicted": cost} for name in ("sft", "dpo")},
    }
    console = Console(file=io.StringIO(), width=80)
    print_findings(facts, console)
    found = console.file.getvalue().splitlines()
    assert found[:2] == [
        "preflight warning: dpo (a): resources.memory: 40 GiB; use more GPUs", "preflight: 2 checks, 1 warning",
    ]  # fmt: skip
    (row,) = [line for line in found if line.strip().startswith("dpo ")]
    assert (
        row.split() == ["dpo", "40.0", "GiB", "12:30:00", "1,234,567,890", "3.2", "GB"] and max(map(len, found)) <= 80
    )


def test_differences_are_lines_and_a_section_that_one_lacks_is_one(capsys):
    rows = [{"what": f"dpo.key{n}", "a": None, "b": n} for n in range(20)]
    rows += [{"what": "method", "a": "sft", "b": "dpo"}, {"what": "text", "a": "one\ntwo", "b": None}]
    show_differences({"keys": rows, "results": []}, ("first", "second"))
    assert capsys.readouterr().out.splitlines() == [
        "A: first", "B: second", "", "keys", "  dpo.*: - -> 20 keys", "  method: sft -> dpo", "  text: one⏎two -> -",
    ]  # fmt: skip
    show_differences({"keys": []}, ("first", "second"))
    assert capsys.readouterr().out == "no difference\n"
