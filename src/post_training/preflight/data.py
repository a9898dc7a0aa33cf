"""Checks of the data by the manifests of its stages: no row is read."""

from collections import Counter
from pathlib import Path
from typing import Any

from post_training.core import manifest
from post_training.core.errors import UserError
from post_training.preflight.check import Check, check
from post_training.preflight.subject import Subject

# Shares above which there is a warning.
_FEW, _MANY = 0.001, 0.05


def checks(subject: Subject) -> list[Check]:
    """Every check of one stage's mix."""
    mix = subject.mix
    found = [_trained_share(subject, entry) for entry in mix["table"]]
    found += [_no_trained_token(subject), _longest(subject), _dropped(subject), _duplicates(subject)]
    if mix["config"]["rows"] != "messages":
        found.append(_contradictions(subject))
    return found


def _trained_share(subject: Subject, entry: dict[str, Any]) -> Check:
    """Of conversations all tokens or hardly any trained on is a wrong template; of pairs, prompts that fill the rows."""
    limits, tokens = subject.view["preflight"], entry["tokens"]
    share = entry["trained_tokens"] / tokens if tokens else 0.0
    low, high = limits["min_trained_share"], limits["max_trained_share"]
    asked_for = subject.own.get("train_on") == "all" or subject.mix["config"]["rows"] != "messages"
    return check(
        "data.trained_share",
        f"{entry['name']}: {share:.1%} of {tokens:,} tokens",
        fails=tokens and (share == 0 or (share > high and not asked_for)),
        warns=share < low,
        remedy=f"expected {low:.0%} to {high:.0%}: see what is trained on with `python -m post_training inspect`, then fix the "
        "template's generation block or the transform, or set preflight.min_trained_share / max_trained_share",
    )


def _no_trained_token(subject: Subject) -> Check:
    rows = dropped(subject)["no_trained_token"]
    share = rows / max(_rows_in(subject), 1)
    return check(
        "data.rows_without_trained_token",
        f"{rows:,} rows ({share:.1%}), all left out",
        fails=share > 0.5,
        warns=share > _FEW,
        remedy="they have no assistant turn that is kept: choose a transform that fits, or fix the source",
    )


def _longest(subject: Subject) -> Check:
    longest, limit = subject.mix.get("longest_document"), subject.shape.max_positions
    if longest is None:
        return Check("data.longest_row", "unknown: an older version made this mix")
    return check(
        "data.longest_row",
        f"{longest:,} tokens; the model has {limit:,} positions" if limit else f"{longest:,} tokens",
        fails=limit is not None and longest > limit,
        remedy=f"set {subject.method}.max_seq_length to {limit} or less, or extend the model's positions in its config.json",
    )


def _dropped(subject: Subject) -> Check:
    """Rows lost between source and mix that no setting removed; rows held out or left out by their weight do not count."""
    reasons, rows_in = dropped(subject), _rows_in(subject)
    share = reasons.total() / max(rows_in, 1)
    listed = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common()) or "none"
    return check(
        "data.dropped",
        f"{reasons.total():,} of {rows_in:,} rows ({share:.1%}): {listed}",
        warns=share > _MANY,
        remedy="see rejects.jsonl of the dataset; for too_long raise max_seq_length or set sft.overlong",
    )


def _duplicates(subject: Subject) -> Check:
    """Training rows that are held out, too: the mix leaves them out, and so they only cost data."""
    held = subject.mix["held_out"]
    rows, duplicates = held.get("rows", 0), held.get("duplicates", 0)
    if not rows:
        return Check("data.duplicates_of_held_out", "nothing is held out")
    share = duplicates / max(_mixed_rows(subject), 1)
    return check(
        "data.duplicates_of_held_out",
        f"{duplicates:,} training rows equal a held-out row ({share:.1%}) and are not trained on",
        warns=share > 0.01,
        remedy="the eval_split overlaps its training data: choose another split",
    )


def _contradictions(subject: Subject) -> Check:
    found = subject.mix.get("contradictory")
    if found is None:
        return Check("data.contradictory_pairs", "unknown: an older version made this mix")
    share = found["rows"] / max(_mixed_rows(subject), 1)
    examples = f", such as {'; '.join(found['examples'])}" if found["examples"] else ""
    return check(
        "data.contradictory_pairs",
        f"{found['rows']:,} rows ({share:.1%}){examples}",
        warns=share > _FEW,
        remedy="the same answers to one prompt have both labels: drop one of them in the source or the transform",
    )


def dropped(subject: Subject) -> Counter[str]:
    """Reason -> rows, over all stages of all datasets that are trained on, rows that a transform skips by choice left out."""
    reasons = Counter(subject.mix["dropped"])
    for tokenized in _inputs(subject.data, subject.mix):
        facts = manifest.read(tokenized)
        reasons += Counter(facts["dropped"])
        for rows in _transformed(tokenized, facts):
            reasons += Counter(rows["dropped"]) - Counter(rows["skipped"])
    return reasons


def _rows_in(subject: Subject) -> int:
    """Rows of the sources of all datasets that are trained on."""
    total = 0
    for tokenized in _inputs(subject.data, subject.mix):
        total += sum(rows["rows_in"] for rows in _transformed(tokenized, manifest.read(tokenized)))
    return total or _mixed_rows(subject)


def _transformed(tokenized: Path, facts: manifest.Manifest) -> list[manifest.Manifest]:
    """Manifests of what was tokenised, as the transform left it: what data.filters takes out, it takes out by choice."""
    found = []
    for path in _inputs(tokenized, facts, "rows"):
        rows = manifest.read(path)
        if rows.get("stage") == "filter":
            found += [manifest.read(before) for before in _inputs(path, rows, "rows")]
        else:
            found.append(rows)
    return found


def _mixed_rows(subject: Subject) -> int:
    return int(sum(entry["rows_in"] for entry in subject.mix["table"]))


def _inputs(path: Path, facts: manifest.Manifest, *names: str) -> list[Path]:
    """Manifests of inputs by name; of a mix those of the datasets that are trained on. Missing ones are left out."""
    wanted = names or [name for name in facts["inputs"] if not name.startswith("eval:")]
    recorded = [Path(facts["inputs"][name]["path"]) for name in wanted if name in facts["inputs"]]
    return [found for entry in recorded if (found := located(path, entry))]


def located(path: Path, recorded: Path) -> Path | None:
    """An input's manifest, where it was, or at the same path below the output base that now holds `path`."""
    if recorded.is_file():
        return recorded
    moved = path.parents[3] / Path(*recorded.parts[-4:]) if len(recorded.parts) >= 4 and len(path.parents) > 3 else None
    return moved if moved is not None and moved.is_file() else None


def template_texts(subject: Subject) -> set[str]:
    """The chat templates that the mix's tokens were made with. Raises UserError where a manifest cannot be read."""
    found = {manifest.read(path)["config"]["chat_template"] for path in _inputs(subject.data, subject.mix)}
    if not found:
        raise UserError(f"{subject.data}: its tokenised datasets are gone; delete it to make it again")
    return found
