"""The shape of the code: layers, lengths of modules and of rules."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
RULES = sorted((REPOSITORY / "workflow" / "rules").glob("*.smk"))


def lint_imports(folder: Path) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(folder / "src")}, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("core/format.py", "", False),
        ("core/format.py", "from post_training.config import batch", True),
        ("data/mix.py", "import post_training.plan.graph", True),
        ("run_dir/stop.py", "def late():\n    from post_training.training import run", True),
    ],
)
def test_an_import_up_breaks_the_contract_of_layers(tmp_path, module, line, broken):
    shutil.copytree(REPOSITORY / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    with (tmp_path / "src" / "post_training" / module).open("a") as file:
        file.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert (done.returncode != 0) is broken, done.stdout
    assert ("is not allowed to import" in done.stdout) is broken


def test_no_module_is_longer_than_300_lines():
    long = {
        str(path.relative_to(REPOSITORY)): lines
        for path in (REPOSITORY / "src").rglob("*.py")
        if (lines := path.read_text().count("\n")) > 300
    }
    assert long == {}


def test_rules_are_short_and_say_what_goes_in_and_out():
    assert sum(path.read_text().count("\n") for path in RULES) <= 345
    for path in RULES:
        if path.name == "common.smk":
            continue
        for rule in re.split(r"^(?=use rule|rule )", path.read_text(), flags=re.M)[1:]:
            lines = rule.strip().splitlines()
            assert len(lines) <= 12, lines[0]
            assert lines[1].strip().startswith('"""') and "    output:" in lines, lines[0]
            inputs = re.search(r"    input:\n((?:        .*\n)+)", rule)
            for line in inputs[1].splitlines() if inputs else ():
                assert re.fullmatch(r"        \w+=[\w.]+(\(.*\))?,", line), line
