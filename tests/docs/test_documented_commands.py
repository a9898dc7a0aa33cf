"""Every command of README.md and docs/: planned, or run in the order of its page in a copy of the project.

What a comment above a block says of it stands in CONTRIBUTING.md. Pages that run something share one copy, in which the tutorial
has been followed first, with fewer steps.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from doc_pages import REPOSITORY, Block, blocks, pages
from projects import copy_project, environment

TUTORIAL = "docs/tutorial.md"
# What takes minutes in a page, and what the tests take instead.
SHORTER = {"max_steps: 200": "max_steps: 4", "{max_steps: 40,": "{max_steps: 2,"}
RECORDER = "#!/bin/sh\nprintf '%s\\0' \"$@\" '' >> \"$RECORDED\"\n"
PLANNER = """
import contextlib, io, json, os, sys
from snakemake.cli import args_to_api, parse_args

for line in sys.stdin:
    folder, words = json.loads(line)
    os.chdir(folder)
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
            parser, args = parse_args(words)
            done = args_to_api(args, parser)
    except SystemExit as error:
        done, _ = False, told.write(str(error))
    print(json.dumps([bool(done), told.getvalue()]))
"""


def write(project: Path, block: Block) -> None:
    text = block.text
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    path = project / block.detail
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def bash(project: Path, block: Block, **more: str) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        cwd=project,
        env=environment(project, **more),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{block}:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout + done.stderr


def own_files(project: Path) -> None:
    """The files of one's own that pages speak of, and README's my.yaml."""
    (project / "my").mkdir(exist_ok=True)
    row = {
        "question": "q",
        "answer": "a",
        "instruction": "i",
        "output": "o",
        "prompt": "p",
        "chosen": "c",
        "rejected": "r",
    }
    for name in ("gsm8k", "alpaca", "pairs"):
        (project / "my" / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    pq.write_table(pa.Table.from_pylist([row]), project / "my" / "pairs.parquet")
    with open(project / "my" / "questions.csv", "w", newline="") as file:
        csv.writer(file).writerows([["question", "answer"], ["q", "a"]])
    for block in blocks("README.md"):
        if block.kind == "file":
            write(project, block)


def recorded(project: Path, block: Block, bin_folder: Path) -> list[list[str]]:
    """The words of each snakemake command of a block, as the shell passes them."""
    record = bin_folder / "recorded"
    record.write_text("")
    bash(project, block, RECORDED=str(record), PATH=f"{bin_folder}:{os.environ['PATH']}")
    commands: list[list[str]] = [[]]
    for word in record.read_text().split("\0")[:-1]:
        if word:
            commands[-1].append(word)
        else:
            commands.append([])
    return commands[:-1]


def test_commands_that_are_not_run_here_are_planned(tmp_path):
    """Those that need minutes, a model, a GPU or a cluster: the shell takes them apart, and Snakemake plans them."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "snakemake").write_text(RECORDER)
    (bin_folder / "snakemake").chmod(0o755)
    asked: list[tuple[Block, str, list[str]]] = []
    for number, page in enumerate(pages()):
        if not any(block.kind == "planned" for block in blocks(page)):
            continue
        project = tmp_path / str(number)
        project.mkdir()
        copy_project(project)
        own_files(project)
        for block in blocks(page):
            if block.kind == "file":
                write(project, block)
            elif block.kind == "planned":
                found = recorded(project, block, bin_folder)
                assert found, f"{block}: no snakemake command"
                asked += [(block, str(project), words if "-n" in words else ["-n", *words]) for words in found]
    lines = "".join(json.dumps([folder, words]) + "\n" for _, folder, words in asked)
    done = subprocess.run(
        [sys.executable, "-c", PLANNER],
        input=lines,
        capture_output=True,
        text=True,
        env=environment(REPOSITORY),
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(asked) > 10, done.stderr[-3000:]
    for (block, _, words), (planned, told) in zip(asked, answers, strict=True):
        assert planned, f"{block}: snakemake {' '.join(words)}\n{told[-3000:]}"


def follow(project: Path, page: str) -> str:
    """Do what a page says, in its order; returns what its commands said."""
    told, names = "", {"__name__": page}
    for block in blocks(page):
        if block.kind == "file":
            write(project, block)
        elif block.kind in ("", "prepared") and block.language == "bash":
            told += bash(project, block)
        elif block.kind == "" and block.language == "python":
            exec(compile("\n" * block.line + block.text, page, "exec"), names)
    return told


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A copy of the project in which the tutorial has been followed, and what its commands said."""
    project = copy_project(tmp_path_factory.mktemp("project"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        told = follow(project, TUTORIAL)
    shutil.copy(project / "my" / "helpdesk.yaml", project / "my.yaml")
    return project, told


@pytest.mark.slow
def test_the_tutorial_does_what_it_says(followed):
    project, told = followed
    assert "361 my/questions.csv" not in told and "481 my/questions.csv" in told and "240 my/pairs.jsonl" in told
    assert "held-out sft" in told and "held-out dpo" in told and "preference accuracy" in told
    assert (project / "outputs" / "helpdesk" / "model" / "model.safetensors").is_file()
    # Its last command changes beta, and says what would run: nothing of SFT's or of the data.
    last = re.split(r"^rule +jobs$", told, flags=re.MULTILINE)[-1]
    assert not {"download", "transform", "tokenize", "mix", "reference"} & {*last.split()}, last
    assert {"train", "export", "evaluate"} <= {*last.split()}


def pages_that_run() -> list[str]:
    runs = [page for page in pages() for block in blocks(page) if block.kind in ("", "prepared")
            and block.language in ("bash", "python")]  # fmt: skip
    return [page for page in dict.fromkeys(runs) if page != TUTORIAL]


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_that_run())
def test_what_a_page_says_works(page, followed, monkeypatch):
    project, _ = followed
    monkeypatch.chdir(project)
    told = follow(project, page)
    for expected in EXPECTED.get(page, []):
        assert expected in told, told[-5000:]


# What a page promises of its commands.
EXPECTED = {
    "docs/howto/transform.md": ["unanswered", "missing_column", "lockers", "May I park here?"],
    "docs/howto/chat_template.md": ["<|bot|>", "<|end|>"],
    "docs/howto/method.md": ["2 steps done"],
    "docs/howto/evaluation.md": ["lm-evaluation-harness", "opening_hours_choice │ acc"],
    "docs/howto/cluster.md": ["--partition=gpu --account=me", "--ntasks-per-node=4 --gres=gpu:4 --cpus-per-task=16"],
    "docs/results.md": ["data/raw/questions-", "dpo.*: - -> ", "Nothing to be done"],
    "docs/training.md": ["nothing to do"],
    "docs/data.md": ["rows.html"],
}
