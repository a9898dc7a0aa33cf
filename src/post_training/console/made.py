"""What a finished stage has made, in a few words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from post_training.core import manifest
from post_training.core.errors import UserError
from post_training.core.format import size
from post_training.report.summary import MEASURES


def made(path: Path) -> str:
    """`700 steps, loss 6.27 -> 0.0124, 3,432 tokens/s`, of the stage with this manifest; empty where it cannot be read."""
    try:
        return _words(manifest.read(path), path)
    except (UserError, OSError, KeyError, TypeError):  # an earlier version wrote other facts
        return ""


def _words(facts: Mapping[str, Any], path: Path) -> str:
    kind = facts["stage"]
    if kind in ("transform", "filter"):
        rows_in, rows_out = facts.get("rows_in", 0), facts.get("rows_out", 0)
        unit = "rows" if kind == "transform" else "examples"
        return f"{rows_in:,} {unit} in, {rows_out:,} examples out{_dropped(facts)}"
    if kind == "tokenize":
        return f"{facts['rows_out']:,} examples, {facts['tokens']:,} tokens, {facts['trained_tokens']:,} with loss"
    if kind == "mix":
        documents, rows = facts.get("documents", facts["rows_out"]), facts["rows_out"]
        packed = f" in {rows:,} packed sequences" if facts.get("packing_efficiency") is not None else ""
        return f"{documents:,} examples{packed}, {facts['tokens']:,} tokens{_dropped(facts)}"
    if kind in ("build_model", "download_model", "merge_adapter"):
        return f"{facts['parameters']:,} parameters" if facts.get("parameters") else _files(facts)
    if kind == "preflight":
        verdicts = [check["verdict"] for check in facts["checks"]]
        count = verdicts.count("warning")
        warnings = f"{count} warning{'s' * (count != 1)}"
        return f"{len(verdicts)} checks, {warnings if count else 'all passed'}"
    if kind == "train":
        speed = facts["metrics"].get("tokens_per_second") if facts.get("metrics") else None
        loss = f", loss {facts['loss_first']:.3g} -> {facts['loss_last']:.3g}" if facts.get("loss_last") else ""
        return f"{facts['steps']:,} steps{loss}" + (f", {speed:,.0f} tokens/s" if speed else "")
    if kind == "reference":
        return f"log-probabilities of {facts['rows_out']:,} pairs"
    checks = facts.get("checks") if kind == "export" else None
    if isinstance(checks, Mapping) and (how := checks.get("stopped", "greedy")) != "greedy":
        return f"{_files(facts)}; with greedy decoding an answer does not end by itself ({how})"
    if kind == "evaluate":
        return ", ".join(_result(name, result) for name, result in facts["results"].items())
    if kind in ("report", "compare"):
        return str(path.with_name("report.html"))
    if kind == "card":
        return "README.md of the model"
    if facts.get("rows_in") is not None and facts.get("rows_out") is not None:
        return f"{facts['rows_in']:,} rows in, {facts['rows_out']:,} out{_dropped(facts)}"
    return f"{facts['rows_out']:,} rows{_dropped(facts)}" if facts.get("rows_out") is not None else _files(facts)


def _dropped(facts: Mapping[str, Any]) -> str:
    reasons = {reason: count for reason, count in (facts.get("dropped") or {}).items() if count}
    listed = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
    return f"; dropped {sum(reasons.values()):,} ({listed})" if reasons else ""


def _files(facts: Mapping[str, Any]) -> str:
    files = facts.get("files") or []
    return f"{len(files):,} file{'s' * (len(files) != 1)}, {size(sum(file.get('bytes', 0) for file in files))}"


def _result(name: str, result: Mapping[str, Any]) -> str:
    key, title = MEASURES[result["kind"]]
    return f"{name}: {title} {result[key]:.3f}"
