"""Snakemake's own messages: which say nothing here, and what to say instead."""

import re
from collections.abc import Iterator
from pathlib import Path

from post_training.console import endings
from post_training.console.jobs import TARGETS, Board
from post_training.core.errors import closest
from post_training.run_dir.lock import last_owner

INTERRUPTED = ("Terminating processes on user request", "Will exit after finishing currently running jobs")
JOB_FAILED = "Exiting because a job execution failed"
NOISE = (
    "Building DAG of jobs", "Using shell:", "Provided ", "Rules claiming", "Select jobs", "Execute ", "Shutting down",
    "Complete log", "Elapsed time", "Conda environments: ignored", "Singularity containers: ignored", "Group jobs: inactive",
    "This was a dry-run", "Trying to restart", "Config file ", "Assuming unrestricted", "Reasons:", "Some jobs were triggered",
)  # fmt: skip
"""Beginnings of texts that are left out."""
METADATA = re.compile(r"Missing metadata for file|\d+ jobs? ha(s|ve) missing provenance/metadata")
"""Of Snakemake's records, which decide nothing here: the fingerprint in a path says what it was made with."""
_AGAIN = "the same command resumes"


def tidy(exception: str, text: str) -> str:
    """An exception of Snakemake's in one line, where we know what it means."""
    if found := re.search(r"No rule to produce (\S+)", text):
        return unknown_target(found[1])
    if "Target rules may not contain wildcards" in text:
        return f"a stage's rule is no target; `--until RULE` ends with it. Targets: {', '.join(TARGETS)}"
    if found := re.search(r"File (\S+) marked for report but does not exist", text):
        return f"{found[1]}: is not made yet; type `snakemake report` first, then `snakemake --report`"
    if exception == "LockException":
        owner = last_owner(Path(".snakemake"))
        who = f" (process {owner.pid} on {owner.host})" if owner else ""
        return f"another snakemake{who} runs in this folder: wait for it, or stop it there; if it is gone, `snakemake --unlock`"
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("  File ")]
    return "\n".join(lines[1:] if len(lines) > 1 and re.match(rf"{exception}\b.*:$", lines[0]) else lines)


def unknown_target(name: str) -> str:
    """What to ask for instead."""
    from post_training.methods import names

    if name in names():
        return f"{name}: is a method, not a target; type `snakemake --config method={name}`"
    guess = closest(name, TARGETS)
    meant = f"did you mean `snakemake {guess}`? " if guess else ""
    return f"{name}: no target of this workflow; {meant}Targets: {', '.join(TARGETS)}"


def last_lines(
    failed: dict[str, endings.Failed], board: Board, errors: list[str], interrupted: bool
) -> Iterator[tuple[str, str]]:
    """The end of a call that has not made everything, as texts and their styles; the most important line is the last."""
    stops = [line for one in failed.values() if (line := endings.stopped(one))]
    if interrupted:
        left = (board.jobs[output] for output in board.running if output in board.jobs)
        more = (endings.stopped(endings.Failed(job, job.kind)) for job in left)
        stops += [line for line in more if line and line not in stops]
    causes = {key: one for key, one in failed.items() if endings.stopped(one) is None}
    done = f"{len(board.finished):,} of {len(board.jobs):,} jobs are done"
    if causes:
        kept = f"{done} and are kept" if board.finished else f"none of {len(board.jobs):,} jobs is done"
        yield f"\n{kept}; once this is fixed, {_AGAIN}:", ""
    for one in causes.values():
        name = one.job.name if one.job else one.rule
        yield f"{name} failed:", "bold red"
        for line in endings.why(one):
            yield f"  {line}", ""
        yield from ((f"  log: {path}", "") for path in one.logs if Path(path).exists())
    for text in dict.fromkeys(errors):
        if not ((failed or interrupted) and "At least one job did not complete" in text):
            yield text, "red"
    for line in stops[:-1]:
        yield line, "yellow"
    if stops:
        yield f"{stops[-1]}; {_AGAIN}", "yellow"
    elif interrupted:
        yield f"stopped; {done}; {_AGAIN}" if board.jobs else "stopped before the first job", "yellow"
