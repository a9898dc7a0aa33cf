"""Rows of every format with faults in any place: a row goes in or is rejected with a listed reason, and the counts add up.

`POST_TRAINING_FUZZ_EXAMPLES=100000 python -m pytest tests/unit/data/test_fuzz_rows.py` tries other faults, for minutes.
"""

import json
import os
from collections import Counter
from pathlib import Path

import orjson
import pytest
from fuzz_rows import FORMATS, rows_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from post_training.core.errors import DataError
from post_training.data import registry
from post_training.data.apply_transform import Application, BlockResult
from post_training.data.reading.records import Block
from post_training.data.reasons import REASONS
from post_training.data.row_groups import apply_to_groups
from post_training.data.tokens.blocks import Settings, Tokenization

EXAMPLES = int(os.environ.get("POST_TRAINING_FUZZ_EXAMPLES", "40"))


def encoded(row):
    text = json.dumps(row)  # with lone surrogates as escapes, and integers of any size
    return text.encode()


@pytest.fixture(scope="module")
def tokenization(bpe_folder):
    text = registry.chat_template_text("chatml")
    return {shape: Tokenization(bpe_folder, Settings(text, shape)) for shape in ("messages", "preference", "unpaired")}


@pytest.mark.parametrize("name", FORMATS)
def test_any_row_goes_in_or_is_rejected_with_a_listed_reason(tmp_path_factory, tokenization, name):
    arguments, good = FORMATS[name]
    source = registry.transform_names([])[name]
    shape = source.gives[0]
    folder = tmp_path_factory.mktemp("fuzz")
    reasons: Counter[str] = Counter()

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES <= 40, suppress_health_check=list(HealthCheck))
    @given(rows=rows_of(good), last_turn=st.sampled_from(["trim", "reject"]))
    def check(rows, last_turn):
        config = {"transform": name, "arguments": arguments, "rows": shape, "last_turn": last_turn}
        application = Application(config, source.file)
        block = Block(Path("x.jsonl"), 1, len(rows), b"\n".join(map(encoded, rows)), len(rows))
        total = BlockResult()
        grouped = application.transform.keys is not None
        for done in apply_to_groups(application, iter([block]), folder) if grouped else [application.block(block)]:
            total.add(done)
            total.lines += done.lines
            total.rejects += done.rejects
        assert total.rows_in == len(rows) == total.rows_out + total.dropped.total()
        assert total.lines.count(b"\n") == total.examples
        rejects = [orjson.loads(line) for line in total.rejects.splitlines()]
        assert len(rejects) == total.dropped.total() + total.dropped_examples.total()
        reasons.update(entry["reason"] for entry in rejects)
        assert all(1 <= entry["row"] == entry["line"] <= len(rows) for entry in rejects)
        (folder / "rows.jsonl").write_bytes(total.lines)
        total.nulls.settle(folder / "rows.jsonl")
        lines = (folder / "rows.jsonl").read_bytes().splitlines()
        made = tokenization[shape].block(lines)
        assert made.rows_in == len(lines) == len(made.rows) + made.dropped.total() == len(made.rows) + len(made.rejects)
        reasons.update(made.dropped)
        try:
            total.read.check(arguments, "x.jsonl")
        except DataError as error:
            assert "\n" not in str(error)
        total.read.summary()

    check()
    assert set(reasons) <= set(REASONS), set(reasons) - set(REASONS)
    assert "transform_error" not in reasons, "a fault of a row that the transform did not expect"
