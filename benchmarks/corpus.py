"""Distinct chats of the length of real ones (about 350 tokens; median 275, 1 % above 1,400), as JSON Lines.

The text is real: sentences of the JSON Lines files in `--real FOLDER` where given, and docstrings and code of the
Python library. Sentences are recombined by a seeded generator, so that any number of chats is distinct and the same
everywhere. `--pairs` writes preference pairs instead.

    python benchmarks/corpus.py OUTPUT.jsonl --rows 100000 [--real FOLDER] [--pairs]
"""

import argparse
import ast
import json
import random
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path


def library_text() -> Iterator[str]:
    """Docstrings and pieces of code of the Python library, in the order of its files."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(folder.glob("*.py")) + sorted(folder.glob("[a-j]*/*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        try:
            text = path.read_text(encoding="utf-8")
            tree = ast.parse(text)
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (found := ast.get_docstring(node)):
                yield found
        yield from (piece for piece in text.split("\n\n\n") if 100 < len(piece) < 1200)


def strings(value: object) -> Iterator[str]:
    """Every text in a JSON value that reads like one."""
    if isinstance(value, str):
        if " " in value and len(value) > 20:
            yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def sentences(real: Path | None) -> list[str]:
    """Sentences and lines, 20 to 400 characters."""
    texts: list[str] = []
    for path in sorted(real.rglob("*.jsonl")) if real else []:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                texts += strings(json.loads(line))
    texts += library_text()
    found: dict[str, None] = {}
    for text in texts:
        for sentence in re.split(r"(?<=[.!?])\s+|\n{2,}", text):
            if 20 <= len(sentence) <= 400:
                found[sentence] = None
    return list(found)


def chats(rows: int, real: Path | None, pairs: bool) -> Iterator[dict[str, object]]:
    """Seeded rows, `messages` or `prompt`, `chosen` and `rejected`."""
    pool = sentences(real)
    rng = random.Random(0)
    for _ in range(rows):
        # Characters of the whole conversation: log-normal, as lengths of real chats are.
        left = rng.lognormvariate(7.02, 0.76)
        messages = []
        for turn in range(rng.choice((1, 1, 1, 2, 2, 3))):
            share = left * (1.0 if turn == 2 else 0.6)
            left -= share
            messages.append({"role": "user", "content": text(rng, pool, share * 0.25)})
            messages.append({"role": "assistant", "content": text(rng, pool, share * 0.75)})
        if pairs:
            size = len(messages[-1]["content"]) * rng.uniform(0.6, 1.4)
            other = {"role": "assistant", "content": text(rng, pool, size)}
            yield {"prompt": messages[:-1], "chosen": messages[-1:], "rejected": [other]}
        else:
            yield {"messages": messages}


def text(rng: random.Random, pool: list[str], size: float) -> str:
    """Sentences up to about `size` characters, some of them on lines of their own."""
    parts, length = [], 0
    while length < size or not parts:
        sentence = pool[rng.randrange(len(pool))]
        parts.append(sentence)
        length += len(sentence) + 1
    joined = parts[0]
    for part in parts[1:]:
        joined += ("\n\n" if rng.random() < 0.15 else " ") + part
    return joined


def write_corpus(path: Path, rows: int, real: Path | None = None, pairs: bool = False) -> None:
    """Write `rows` chats, or pairs."""
    with Path(path).open("w", encoding="utf-8") as file:
        for row in chats(rows, real, pairs):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--real", type=Path, default=None)
    parser.add_argument("--pairs", action="store_true")
    options = parser.parse_args()
    write_corpus(options.output, options.rows, options.real, options.pairs)
