"""What a mix tells preflight beside its rows: longest row, rows that contradict each other, duplicates of held-out rows."""

import pytest


def said(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_the_longest_document_and_row(stages, tokens, read):
    rows = [said(f"{n}?", "no " * (n % 7 + 1)) for n in range(60)]
    made = stages.tokens_of(rows, name="a")
    lengths = [len(row["input_ids"]) for row in tokens(made)]
    packed, plain = (read(stages.mix({"a": made}, packing=packing, name=f"m{packing}")) for packing in (True, False))
    assert packed["longest_document"] == plain["longest_document"] == plain["longest_row"] == max(lengths)
    capacity = packed["config"]["max_seq_length"]
    assert max(lengths) < packed["longest_row"] <= capacity
    assert packed["longest_row"] * packed["rows_out"] >= packed["tokens"]
    assert packed["contradictory"] is None


def pair(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_pairs_both_ways_round_over_several_datasets(stages, read):
    a = [pair("p", "x", "y"), pair("q", "x", "y"), pair("r", "x", "y"), pair("r", "x", "z")]
    b = [pair("p", "y", "x"), pair("q", "x", "y"), pair("s", "y", "x")]
    made = {name: stages.tokens_of(rows, shape="preference", name=name) for name, rows in (("a", a), ("b", b))}
    found = read(stages.mix(made, shape="preference", name="both"))["contradictory"]
    assert found == {"rows": 2, "examples": ["a row 1 and b row 1"]}
    alone = read(stages.mix({"a": made["a"]}, shape="preference", name="alone"))["contradictory"]
    assert alone == {"rows": 0, "examples": []}


def test_one_answer_judged_both_ways(stages, read):
    rows = [("p", "x", True), ("p", "x", False), ("p", "y", True), ("q", "x", False), ("p", "x", True)]
    rows = [{"prompt": prompt, "completion": answer, "label": label} for prompt, answer, label in rows]
    made = stages.tokens_of(rows, shape="unpaired", name="u", transform="unpaired_preference")
    assert read(stages.mix({"u": made}, shape="unpaired"))["contradictory"]["rows"] == 3


@pytest.mark.parametrize("copies", [0, 5])
def test_training_rows_that_are_held_out_too(stages, read, copies):
    train = stages.tokens_of([said(f"{n}?", "yes") for n in range(20)], name="a")
    held = stages.tokens_of([said(f"{n + 20 - copies}?", "yes") for n in range(10)], name="held")
    found = read(stages.mix({"a": train, "eval:a": held}, name="m"))
    assert found["held_out"]["rows"] > 0 and found["held_out"]["duplicates"] == copies
