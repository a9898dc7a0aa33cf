"""`inspect` and `token-stats`: each row at every step, and nothing in a row that a browser would obey."""

import json
import re

import pytest
import yaml
from tiny import conversation

from post_training.__main__ import main
from post_training.inspection import collect


@pytest.fixture(scope="module")
def config(tmp_path_factory, model_manifest, template):
    """Conversations (row 4 is rejected, row 5 too long, row 6 a script), and pairs of which a source row gives two."""
    folder = tmp_path_factory.mktemp("inspected")
    rows = [{"messages": conversation(number)} for number in range(8)]
    rows[3]["messages"] = rows[3]["messages"][:1]
    rows[4]["messages"][1]["content"] = "4" * 200
    rows[5]["messages"][1]["content"] = "<script>alert(1)</script>\x1b[2J"
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": f"{n} and 1?", "chosen": f"{n + 1}", "rejected": f"{n + 2}"} for n in range(5)]
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    settings = {
        "method": "dpo", "offline": True, "paths": {"output_base": str(folder / "outputs")}, "training": {"max_steps": 1},
        "model": {"name_or_path": str(model_manifest.parent / "model")},
        "data": {
            "chat_template": str(template), "max_reject_fraction": 0.5, "datasets": [{"name": "a", "path": str(folder / "a.jsonl")}],
        },
        "sft": {"max_seq_length": 64},
        "dpo": {"max_seq_length": 64, "data": {"datasets": [{"name": "p", "path": str(folder / "p.jsonl"), "transform": "preference"}]}},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_a_row_at_every_step(config, capsys, tokenizer):
    plan, method = collect.prepared(str(config), [], "sft")
    (example,) = collect.examples(plan, method, 1, ["a:2"], 0)
    assert example.raw == {"messages": conversation(1)} and not example.fate
    assert [turn["content"] for turn in example.transformed["messages"]] == ["1 and 0?", "1"]
    (sequence,) = example.sequences
    assert sequence.text == "<|im_start|>user\n1 and 0?<|im_end|>\n<|im_start|>assistant\n1<|im_end|>\n"
    assert tokenizer.decode([token.id for token in sequence.tokens]) == sequence.text
    assert [token.text for token in sequence.tokens if token.trained] == ["1", "<|im_end|>"]


def test_what_became_of_rows_that_are_not_trained_on(config):
    plan, method = collect.prepared(str(config), [], "sft")
    found = {e.row: e.fate for e in collect.examples(plan, method, 1, ["4", "5", "99"], 0)}
    assert found[4].startswith("rejected: ")
    assert re.fullmatch(r"\d+ tokens, more than max_seq_length=64: dropped by the mix", found[5])
    assert found[99] == "there is no such row in the source"


def test_a_rejected_row_of_a_second_file_has_its_own_reason(config):
    files = [config.parent / "a.jsonl", config.parent / "b.jsonl"]
    rows = [{"messages": conversation(20)}, {"messages": []}, {"messages": conversation(21)}]
    files[1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = [f"data.datasets[0].path=[{files[0]},{files[1]}]"]
    plan, method = collect.prepared(str(config), overrides, "sft")
    rejected, good = collect.examples(plan, method, 1, ["10", "11"], 0)
    assert rejected.fate.startswith("rejected: empty_conversation: ") and rejected.raw == rows[1]
    assert good.raw == rows[2] and not good.fate


def test_in_the_terminal_and_as_a_page(config, capsys, tmp_path):
    page = tmp_path / "page.html"
    arguments = ["inspect", "--config", str(config), "--stage", "sft", "--row", "6", "--row", "2", "--html", str(page)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "«1<|im_end|>»" in shown and "\x1b" not in shown and "\\x1b[2J" in shown
    html = page.read_text()
    assert "<script>alert" not in html and "&lt;script&gt;alert" in html and "\x1b" not in html
    assert 'class="t on"' in html and "://" not in html


def test_pairs_show_both_answers(config, capsys):
    assert main(["inspect", "--config", str(config), "-n", "3"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("chosen: formatted") == shown.count("rejected: formatted") == 3


def test_random_rows_follow_from_the_seed(config):
    plan, method = collect.prepared(str(config), [], "sft")
    numbers = [[e.row for e in collect.examples(plan, method, 4, [], seed)] for seed in (0, 0, 1)]
    assert len(numbers[0]) == 4 and numbers[0] == numbers[1] != numbers[2]
    assert len(collect.examples(plan, method, 100, [], 0)) == 7


def test_a_table_by_dataset(config, capsys):
    assert main(["token-stats", "--config", str(config), "--stage", "sft", "data.datasets[0].weight=2"]) == 0
    shown = capsys.readouterr().out
    assert (
        re.search(r"^ *a +8 +7 +7 ", shown, re.MULTILINE) and "too_long 1" in shown and "no_assistant_turn 1" in shown
    )
    assert re.search(r"^ *a +8 +7 +7 +12 ", shown, re.MULTILINE)


@pytest.mark.parametrize(
    "arguments,expected",
    [
        (["inspect", "--stage", "ppo"], "--stage: found 'ppo'; this configuration has sft, dpo"),
        (
            ["inspect", "--row", "x:1"],
            "--row: found 'x:1', expected a row's number or <dataset>:<number>; datasets are p",
        ),
        (["inspect", "--stage", "sft", "--row", "99999"], "--row 99999: there is no such row in the source"),
        (["inspect", "--row", str(10**30)], f"--row {10**30}: there is no such row in the source"),
        (["inspect", "-n", "-1"], "argument -n: found '-1', expected a number from 0 on"),
        (["inspect", "--seed", "-1"], "argument --seed: found '-1', expected a number from 0 on"),
        (["inspect", "--html", "/tmp"], "--html: /tmp is a folder; name a file"),
        (["inspect", "--html", "/proc/x.html"], "--html: /proc/x.html: cannot be written"),
        (["token-stats", "data.sed=1"], "config error: data.sed: unknown key"),
    ],
)
def test_mistakes_are_one_line(config, capsys, arguments, expected):
    assert main([*arguments[:1], "--config", str(config), *arguments[1:]]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert expected in error[-1] and "Traceback" not in "".join(error)


def test_a_character_of_several_tokens_is_the_text_of_the_first(tokenizer):
    import numpy as np
    from tokenizers import Tokenizer

    from post_training.inspection.tokens import tokens_of

    fast = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    text = "aé 日本👍🏽z"
    ids = fast.encode(text, add_special_tokens=False).ids
    shown = tokens_of(fast, np.array(ids), np.ones(len(ids), dtype=bool))
    assert "".join(token.text for token in shown) == text and [token.id for token in shown] == ids
    cut = tokens_of(fast, np.array(ids[:-2]), np.zeros(len(ids) - 2, dtype=bool))
    assert len(cut) == len(ids) - 2 and not any("\ufffd" in token.text for token in cut)
