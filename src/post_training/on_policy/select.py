"""Body of the rule `select`: scored answers -> rows of a method's shape.

`rows.jsonl` is as of a transform. `candidates.jsonl` has a line for each prompt: all its answers with every score, which were
taken, and why none was.
"""

import math
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import orjson

from post_training.core.errors import DataError
from post_training.core.fingerprint import replacing
from post_training.core.task import Task
from post_training.data.message import visible
from post_training.data.rows import InvalidRow, Rules, checker
from post_training.data.shapes import VALUES
from post_training.on_policy.answers import SCORE, SCORES, Line, prompt_digest, read_answers, read_lines, read_prompts
from post_training.on_policy.score import quantiles

CANDIDATES = "candidates.jsonl"


@dataclass
class Candidate:
    """One answer to a prompt."""

    sample: int
    text: str
    ended: bool
    scores: dict[str, float | None]
    score: float | None
    """Weighted sum; None where one of them is missing."""
    why_not: str = ""
    """Why it cannot be in a row."""


@dataclass
class Made:
    """What became of a prompt: rows by the samples in them, or the reason that there is none."""

    rows: list[dict[str, Any]]
    """`chosen`, `rejected` and perhaps `margin`, `answer`, or `answer` and `label`; samples for answers."""
    reason: str = ""


def run(task: Task) -> None:
    """Write `rows.jsonl`, `candidates.jsonl` and the manifest. Raises DataError where no prompt gives a row."""
    config, prompts = task.config, read_prompts(task.inputs["prompts"])
    by_prompt: dict[int, list[Candidate]] = {number: [] for number in range(len(prompts))}
    for (number, _), candidate in zip(*_candidates(task), strict=True):
        by_prompt[number].append(candidate)
    check, counts, dropped, parts = checker(config["rows"]), Counter[str](), Counter[str](), Counter[int]()
    lengths: dict[str, list[int]] = {}
    task.directory.mkdir(parents=True, exist_ok=True)
    with replacing(task.directory / "rows.jsonl") as rows, replacing(task.directory / CANDIDATES) as all_of_them:
        for number, prompt in enumerate(prompts):
            candidates = by_prompt[number]
            _rule_out(candidates, config["cut"])
            counts.update(candidate.why_not or "usable" for candidate in candidates)
            made = choose(candidates, config, prompt_digest(prompt["prompt"], prompt.get("tools")))
            kept, text_of = [], {one.sample: one.text for one in candidates}
            for row in made.rows:
                values = {key: value for key, value in row.items() if key in VALUES}
                texts = {key: text_of[row[key]] for key in row if key not in VALUES}
                try:
                    checked = check(as_row(prompt, texts, values), Rules("reject"))
                except InvalidRow as error:
                    made.reason = f"invalid: {error.reason}"
                    continue
                for key, text in texts.items():
                    lengths.setdefault(_side(key, row), []).append(len(text))
                rows.write(orjson.dumps({"row": prompt["row"], "part": parts[prompt["row"]], **checked}) + b"\n")
                parts[prompt["row"]] += 1
                kept.append(row)
            if not kept:
                dropped[made.reason] += 1
            all_of_them.write(orjson.dumps(_line(prompt, candidates, kept, made.reason)) + b"\n")
    _finish(task, by_prompt, counts, dropped, sum(parts.values()), lengths)


def _candidates(task: Task) -> tuple[list[tuple[int, int]], list[Candidate]]:
    answers, weights = read_answers(task.inputs), task.config["weights"]
    tables: dict[str, dict[tuple[int, int], float | None]] = {}
    for name in weights:
        lines = read_lines(task.inputs[f"{SCORE}{name}"].with_name(SCORES))
        tables[name] = {(line["prompt"], line["sample"]): line["score"] for line in lines}
    found = []
    for key, line in answers.items():
        scores = {name: table[key] for name, table in tables.items()}
        values = [None if score is None else weights[name] * score for name, score in scores.items()]
        total = None if None in values else sum(value for value in values if value is not None)
        total = total if total is not None and math.isfinite(total) else None
        found.append(Candidate(line["sample"], line["answer"], line["ended"], scores, total))
    return list(answers), found


def _rule_out(candidates: list[Candidate], cut: str) -> None:
    seen: set[str] = set()
    for one in candidates:
        if not visible(one.text):
            one.why_not = "empty"
        elif not one.ended and cut == "drop":
            one.why_not = "cut"
        elif one.score is None:
            one.why_not = "no_score"
        elif one.text in seen:
            one.why_not = "repeated"
        seen.add(one.text)


def choose(candidates: list[Candidate], config: dict[str, Any], prompt: str) -> Made:
    """The rows of one prompt. `prompt` is its digest, which seeds a random choice."""
    usable = sorted((one for one in candidates if not one.why_not), key=lambda one: (-_score(one), one.sample))
    if not usable:
        reasons = Counter(one.why_not for one in candidates)
        return Made([], f"no_answer: all {reasons.most_common(1)[0][0]}" if len(reasons) == 1 else "no_answer")
    if config["rows"] == "preference":
        return _pairs(usable, config, prompt)
    threshold = config["threshold"]
    if config["rows"] == "unpaired":
        return Made([{"answer": one.sample, "label": _score(one) >= threshold} for one in usable])
    above = [one for one in usable if threshold is None or _score(one) >= threshold]
    return Made([{"answer": one.sample} for one in above[: config["best"]]], "" if above else "below_threshold")


def _pairs(usable: list[Candidate], config: dict[str, Any], prompt: str) -> Made:
    if len(usable) < 2:
        return Made([], "one_answer")
    if _score(usable[0]) == _score(usable[-1]):
        return Made([], "all_equal")
    ordered = [(better, worse) for index, better in enumerate(usable) for worse in usable[index + 1 :]]
    decided = [(b, w) for b, w in ordered if _score(b) > _score(w) and _score(b) - _score(w) >= config["min_margin"]]
    if not decided:
        return Made([], "small_margin")
    if config["pairs"] == "best_worst":
        decided = [(usable[0], usable[-1])]
    elif config["pairs"] == "best_random":
        of_best = [pair for pair in decided if pair[0] is usable[0]]
        decided = [random.Random(f"{config['seed']} {prompt}").choice(of_best)]  # noqa: S311
    rows: list[dict[str, Any]] = [{"chosen": better.sample, "rejected": worse.sample} for better, worse in decided]
    if config.get("margin"):
        rows = [row | {"margin": _score(b) - _score(w)} for row, (b, w) in zip(rows, decided, strict=True)]
    return Made(rows)


def _score(one: Candidate) -> float:
    assert one.score is not None
    return one.score


def as_row(prompt: Line, texts: dict[str, str], values: dict[str, Any]) -> dict[str, Any]:
    """Prompt and answers, with a label or a margin, as a row of the shape that they make."""
    said = {key: [{"role": "assistant", "content": text}] for key, text in texts.items()}
    more = values | ({"tools": prompt["tools"]} if "tools" in prompt else {})
    if "chosen" in said:
        return {"prompt": prompt["prompt"], **said, **more}
    if "label" in values:
        return {"prompt": prompt["prompt"], "completion": said["answer"], **more}
    return {"messages": [*prompt["prompt"], *said["answer"]], **more}


def _side(key: str, row: dict[str, Any]) -> str:
    return key if "label" not in row else "desirable" if row["label"] else "undesirable"


def _line(prompt: Line, candidates: list[Candidate], rows: list[dict[str, Any]], reason: str) -> Line:
    answers = [
        {"sample": one.sample, "answer": one.text, "ended": one.ended, "scores": one.scores, "score": one.score}
        | ({"why_not": one.why_not} if one.why_not else {})
        for one in candidates
    ]
    place: Line = {key: prompt[key] for key in ("row", "part") if key in prompt}
    return {**place, "prompt": prompt["prompt"], "answers": answers, "rows": rows, "reason": reason}


def _finish(
    task: Task,
    by_prompt: dict[int, list[Candidate]],
    counts: Counter[str],
    dropped: Counter[str],
    examples: int,
    lengths: dict[str, list[int]],
) -> None:
    usable = [one.score for candidates in by_prompt.values() for one in candidates if one.score is not None]
    found = quantiles(usable)
    total = len(by_prompt)
    said = "".join(f", {reason} {count:,}" for reason, count in dropped.most_common())
    print(f"{total:,} prompts, {total - dropped.total():,} with a row, {examples:,} rows{said}")
    print(
        f"answers: {', '.join(f'{reason} {count:,}' for reason, count in counts.most_common())}; scores {found}",
        flush=True,
    )
    if not examples:
        reach = f"scores from {min(usable):g} to {max(usable):g}" if usable else "no scores"
        raise DataError(
            f"select: none of {total:,} prompts gives a row{said}; answers: {dict(counts)}; {reach}; see {task.directory}/{CANDIDATES}, "
            "and change the rewards, select, or sample more and longer answers"
        )
    if task.config["rows"] == "unpaired" and len(lengths) < 2:
        raise DataError(
            f"select: by threshold={task.config['threshold']:g} all {examples:,} answers are {next(iter(lengths))}; scores {found}; choose a "
            "threshold that some answers reach and some do not"
        )
    task.finish(
        rows_in=total,
        rows_out=total - dropped.total(),
        examples=examples,
        dropped=dict(dropped),
        skipped=dict(dropped),  # each by choice
        dropped_examples={},
        answers=dict(counts),
        scores=found,
        mean_characters={side: round(sum(sizes) / len(sizes), 1) for side, sizes in lengths.items()},
        files=[{"path": "rows.jsonl"}, {"path": CANDIDATES}],
    )
