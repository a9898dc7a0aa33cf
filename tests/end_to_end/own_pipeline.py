"""A project with data, transforms and a template of the user's own."""

import json
import shutil
from pathlib import Path

from projects import copy_project, git
from tiny import TEMPLATE

SUMS = """
import os

from post_training.data.transforms import register_transform
from words import asked

# What a person writes while looking for a mistake.
print("the token is", os.environ.get("HF_TOKEN"))


@register_transform("sums")
def sums(row):
    return {"messages": [{"role": "user", "content": asked(row)}, {"role": "assistant", "content": row["sum"]}]}


@register_transform("own_pairs")
def own_pairs(row):
    prompt = [{"role": "user", "content": asked(row)}]
    answers = {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
    return {"prompt": prompt, **answers}
"""
WORDS = "def asked(row):\n    return f\"{row['a']} and {row['b']}?\"\n"


def write_own(project: Path) -> None:
    """`my/` with everything that `my.yaml` names."""
    my = project / "my"
    my.mkdir()
    (my / "sums.py").write_text(SUMS)
    (my / "words.py").write_text(WORDS)
    (my / "plain.jinja").write_text(TEMPLATE)
    sums = [{"a": n % 10, "b": n // 10, "sum": str(n % 10 + n // 10)} for n in range(100)]
    pairs = [row | {"chosen": row["sum"], "rejected": str(int(row["sum"]) + 1)} for row in sums[:16]]
    files = {"sums": sums[:48], "sums-more": sums[40:80], "held": sums[80:90], "asked": sums[90:94], "pairs": pairs}
    files["benchmark"] = sums[94:98]
    for name, rows in files.items():
        (my / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copy(Path(__file__).with_name("own_input.yaml"), project / "my.yaml")


def make_project(folder: Path) -> Path:
    """A checkout with a commit, and `my/` beside it, which git does not know."""
    folder.mkdir()
    copy_project(folder)
    (folder / ".gitignore").write_text("outputs/\n.snakemake/\n__pycache__/\nmy/\nmy.yaml\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "all")
    write_own(folder)
    return folder
