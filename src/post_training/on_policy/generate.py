"""Body of the rule `generate`: one shard of a model's answers.

All answers, sorted by the lengths of their prompts, form batches, and a shard does every so-manyth of them: what a batch holds
does not depend on the number of shards. Each answer is sampled with random numbers of its own. So on a CPU the answers are
the same bytes for any number of shards, and after any kill: the job continues after the last batch that it has written.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from post_training.core import manifest
from post_training.core.errors import UserError
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
    read_lines,
    read_prompts,
)
from post_training.on_policy.engine import Engine, Request
from post_training.run_dir.lock import take
from post_training.run_dir.stop import REQUEST

if TYPE_CHECKING:
    from post_training.on_policy.server import ServerEngine


# Answers of a shard that can hardly all be empty by chance.
_MANY = 32


def run(task: Task) -> int:
    """Write `answers.jsonl` and the manifest. Returns 0, or the exit code of the signal on which it stopped."""
    with REQUEST, take(task.directory, patience_seconds=PATIENCE_SECONDS, alone=True):
        return _run_owned(task)


def _run_owned(task: Task) -> int:
    prompts = read_prompts(task.inputs["prompts"])
    with _engine(task) as engine:
        lengths = [engine.length(line["prompt"], line.get("tools")) for line in prompts]
        number, shards = task.config["shard"]
        batches = batches_of(lengths, task.config["n"], engine.at_a_time or task.runtime["batch_size"])
        file = Resumable(task.directory / ANSWERS, batches[number::shards])
        total = sum(map(len, file.batches))
        if file.rows:
            print(f"generate: resuming after {file.rows:,} of {total:,} answers", flush=True)
        progress, before = Progress("generate", "answers", total), file.rows
        while file.done < len(file.batches):
            if (code := must_stop("generate", file, total)) is not None:
                return code
            batch = file.batches[file.done]
            file.append(_lines(batch, engine.answers([_request(prompts[place], sample) for place, sample in batch])))
            progress.update(file.rows - before)
    too_long = [place for place, length in enumerate(lengths) if length is None][number::shards]
    _finish(task, file, len(too_long))
    return 0


@contextmanager
def _engine(task: Task) -> "Iterator[Engine | ServerEngine]":
    sampling, server = task.config["sampling"], task.runtime.get("server")
    folder = model_folder(task.inputs["model"]) if "model" in task.inputs else None
    if server is not None:
        from post_training.on_policy.server import serving

        log = task.directory / "logs" / "server.log"
        with serving(folder, task.config.get("model_name", ""), sampling, server, log) as engine:
            yield engine
        return
    assert folder is not None
    trust = bool(manifest.read(task.inputs["model"]).get("trust_remote_code"))
    yield Engine.load(folder, task.config["chat_template"], sampling, trust)


def _request(line: Line, sample: int) -> Request:
    tools = line.get("tools")
    return Request(line["prompt"], tools, f"{prompt_digest(line['prompt'], tools)} {sample}")


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
    file.path.touch()  # a shard may have nothing to answer
    lines = read_lines(file.path)
    # Of fewer, `select` counts them all.
    if (task.config["shard"][1] == 1 or len(lines) >= _MANY) and lines and not any(line["answer"] for line in lines):
        raise UserError(
            f"{file.path}: all {len(lines):,} answers are empty; delete it, and look at the prompts and the model"
        )
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
