"""Commands that only read change nothing: no byte, no time stamp and no link of a finished tree."""

import os
import subprocess

import pytest
from test_light import SNAKEMAKE

COMMANDS = {
    "-n": ["-n"],
    "--list-rules": ["--list-rules"],
    "--list-target-rules": ["--list-target-rules"],
    "--summary": ["--summary"],
    "--detailed-summary": ["--detailed-summary"],
    "--rulegraph": ["--rulegraph"],
    "--dag": ["--dag"],
    "--filegraph": ["--filegraph"],
    "--lint": ["--lint"],
    "--list-input-changes": ["--list-changes", "input"],
    "--compilation": ["--print-compilation"],
    "--unlock": ["--unlock"],
    "--delete-all-output -n": ["--delete-all-output", "-n"],
    "preflight -n": ["preflight", "-n"],
    "report -n": ["report", "-n"],
}


def state(folder) -> dict[str, object]:
    """Every file with its content and time, every link with its target, every folder."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else None
    return found


@pytest.mark.parametrize(
    ("override", "commands"),
    [(False, ["-n", "--rulegraph", "--unlock"]), (True, list(COMMANDS))],
    ids=["plain", "debug.override_existing"],
)
def test_they_change_nothing(project, override, commands):
    if override:
        project.config["debug"] = {"enabled": True, "override_existing": True}
        project.write()
    project.complete()
    base = project.graph().base
    (base / "old-run").symlink_to("nowhere")
    for name in project.graph().links():
        (base / name).symlink_to("another-run")  # a start would point it
    before = state(base)
    assert any(name.endswith("manifest.json") for name in before)
    for name in commands:
        done = subprocess.run([*SNAKEMAKE, *COMMANDS[name]], capture_output=True, text=True, cwd=project.path)
        assert done.returncode == 0, (name, done.stderr[-1000:])
        assert state(base) == before, name


def test_a_start_acts_also_when_nothing_is_to_be_done(project):
    """Links lead to the runs that the configuration means, and the closing summary is printed."""
    project.complete()
    graph = project.graph()
    (graph.base / next(iter(graph.links()))).symlink_to("another-run")
    done = subprocess.run([*SNAKEMAKE, "-c1"], capture_output=True, text=True, cwd=project.path)
    assert done.returncode == 0 and "Nothing to be done" in done.stdout + done.stderr, done.stderr
    assert {name: os.readlink(graph.base / name) for name in graph.links()} == graph.links()
    assert f"{graph.base}/" in done.stderr


def test_hooks_are_needed(project):
    done = subprocess.run([*SNAKEMAKE, "-c1", "--no-hooks"], capture_output=True, text=True, cwd=project.path)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("--no-hooks: "), done.stderr
    assert not (project.path / "outputs").exists()
