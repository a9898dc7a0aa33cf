"""Body of the rule `generate`: one shard of a model's answers.

All answers, sorted by the lengths of their prompts, form batches, and a shard does every so-manyth of them: what a batch holds
does not depend on the number of shards. Each answer is sampled with random numbers of its own. So on a CPU the answers are
the same bytes for any number of shards, and after any kill: the job continues after the last batch that it has written.
"""

from collections import Counter
from typing import Any

from post_training.core import manifest
from post_training.core.progress import Progress
from post_training.core.task import Task
from post_training.models import folder as model_folder
from post_training.on_policy.answers import (
    ANSWERS,
    PATIENCE_SECONDS,
    Key,
    Line,
    Resumable,
    must_stop,
    prompt_digest,
    read_prompts,
)
from post_training.on_policy.engine import Engine, Request
from post_training.run_dir.lock import take
from post_training.run_dir.stop import REQUEST


def run(task: Task) -> int:
    """Write `answers.jsonl` and the manifest. Returns 0, or the exit code of the signal on which it stopped."""
    with REQUEST, take(task.directory, patience_seconds=PATIENCE_SECONDS, alone=True):
        return _run_owned(task)


def _run_owned(task: Task) -> int:
    prompts = read_prompts(task.inputs["prompts"])
    trust = bool(manifest.read(task.inputs["model"]).get("trust_remote_code"))
    engine = Engine.load(
        model_folder(task.inputs["model"]), task.config["chat_template"], task.config["sampling"], trust
    )
    ids = [engine.prompt_ids(line["prompt"], line.get("tools")) for line in prompts]
    number, shards = task.config["shard"]
    batches = batches_of(
        [len(one) if engine.fits(one) else None for one in ids], task.config["n"], task.runtime["batch_size"]
    )
    file = Resumable(task.directory / ANSWERS, batches[number::shards])
    total = sum(map(len, file.batches))
    if file.rows:
        print(f"generate: resuming after {file.rows:,} of {total:,} answers", flush=True)
    progress, before = Progress("generate", "answers", total), file.rows
    streams = [prompt_digest(line["prompt"], line.get("tools")) for line in prompts]
    while file.done < len(file.batches):
        if (code := must_stop("generate", file, total)) is not None:
            return code
        batch = file.batches[file.done]
        file.append(_lines(batch, engine.answers([Request(ids[p], f"{streams[p]} {s}") for p, s in batch])))
        progress.update(file.rows - before)
    too_long = [place for place, one in enumerate(ids) if not engine.fits(one)][number::shards]
    _finish(task, file, len(too_long))
    return 0


def batches_of(lengths: list[int | None], n: int, size: int) -> list[list[Key]]:
    """(prompt, sample) of every answer in batches of like lengths, longest first; None is a prompt that is not asked."""
    asked = sorted(
        (place for place, found in enumerate(lengths) if found is not None), key=lambda p: -(lengths[p] or 0)
    )
    keys = [(place, sample) for place in asked for sample in range(n)]
    return [keys[start : start + size] for start in range(0, len(keys), size)]


def _lines(batch: list[Key], answers: list[Any]) -> list[Line]:
    return [
        {"prompt": prompt, "sample": sample, "answer": one.text, "tokens": one.tokens, "ended": one.ended}
        for (prompt, sample), one in zip(batch, answers, strict=True)
    ]


def _finish(task: Task, file: Resumable, too_long: int) -> None:
    from post_training.on_policy.answers import read_lines

    lines = read_lines(file.path) if file.path.is_file() else []
    if not file.path.is_file():
        file.path.touch()
    counts = Counter(
        {"cut": sum(not line["ended"] for line in lines), "empty": sum(not line["answer"] for line in lines)}
    )
    print(f"{len(lines):,} answers, {counts['cut']:,} cut by max_new_tokens, {counts['empty']:,} empty", flush=True)
    task.finish(
        rows_out=len(lines),
        tokens=sum(line["tokens"] for line in lines),
        dropped={"prompt_too_long": too_long} if too_long else {},
        answers=dict(counts),
        files=[{"path": ANSWERS}],
    )
