"""The shipped recipes are sound to preflight: what was published must not be warned of."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from post_training.config import load_file, resolve_runs
from post_training.config.batch import Topology
from post_training.core.devices import Device
from post_training.core.format import GIB
from post_training.preflight import optimisation, resources
from post_training.preflight.subject import Subject

RECIPES = sorted((Path(__file__).parents[3] / "config" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_published_recipe_is_plausible(path, subject_of):
    """With as many parameters as its name says, on 8 H100, and a million rows."""
    billions = float(re.search(r"-([\d.]+)b", path.stem)[1])
    shape = dataclasses.replace(
        subject_of().shape,
        parameters=int(billions * 1e9),
        **({"layers": 32, "hidden": 4096, "intermediate": 12288} if billions > 4 else {}),
    )
    device = Device("h100-80", 80 * GIB, 989e12)
    for pipeline in resolve_runs(load_file(path)):
        for name, view in pipeline.views.items():
            example = subject_of(view["method"])
            told = json.loads(example.data.read_text()) | {
                "rows_out": 1_000_000,
                "longest_row": view[view["method"]]["max_seq_length"],
            }
            example.data.write_text(json.dumps(told))
            subject = Subject(name, view, example.data, path.parent, shape, Topology(1, 8, "GPU"), device, path.parent)
            found = [*optimisation.checks(subject), resources.memory_check(subject)]
            unsound = [check.line() for check in found if check.verdict != "ok"]
            unsound = [line for line in unsound if "optimisation.batch" not in line]  # of other devices than these
            assert not unsound
