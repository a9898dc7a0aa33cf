"""Mistakes on Snakemake's command line that it would answer with a traceback, or not at all; each becomes one line here."""

import argparse
import json
import os
import re
import shlex
import sys
from pathlib import Path

from post_training.config.yaml_file import load_file
from post_training.console.jobs import TARGETS
from post_training.console.messages import unknown_target
from post_training.core.errors import UserError, did_you_mean
from post_training.core.format import for_terminal

# Options that take all words up to the next option, and so a target as well.
_CONFIG, _FILES, _PROFILE = ("--config", "-C"), ("--configfile", "--configfiles"), ("--workflow-profile",)


def check_command_line(words: list[str]) -> None:
    """End the process with one line where a user has typed a command that cannot work; other processes continue."""
    program = Path(words[0] if words else "")
    if program.name != "snakemake" and program.parent.name != "snakemake":
        return
    argparse.ArgumentParser.print_usage = lambda *_: None  # type: ignore[assignment,method-assign]  # 100 lines, and then the mistake
    try:
        check(words[1:])
    except UserError as error:
        print(for_terminal(str(error)), file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)  # Snakemake is in the middle of its imports, and would wrap a SystemExit


def report_command(words: list[str]) -> str:
    """The command that makes the page of what this command line made: `snakemake report --configfile my.yaml`."""
    options = [*_CONFIG, *_FILES, "-s", "--snakefile", "-d", "--directory"]
    own = _options(words[1:]) if words and Path(words[0]).name == "snakemake" else []
    return shlex.join(
        ["snakemake", "report", *(word for one in own if one[0] in options for word in (one[0], *one[1]))]
    )


def check(words: list[str]) -> None:
    """Raise UserError for the first mistake."""
    if "--mode" in words:
        return  # a job's own Snakemake: a user's words have been checked
    options = _options(words)
    files = [values for option, values in options if option in _FILES]
    if len(files) > 1:
        joined = " ".join(value for values in files for value in values)
        problem = f"is given {len(files)} times, and the last one alone would be read"
        raise UserError(f"--configfile: {problem}; to merge them, type --configfile {joined}")
    for option, values in options:
        if option in _CONFIG:
            _check_config(values)
        elif option in _FILES:
            _check_files(values)
        elif re.fullmatch(r"(-[cj]|--cores|--jobs)0*", option) and (values or [option])[0].lstrip("-cj") == "0":
            raise UserError(
                f"{' '.join((option, *values))}: with none, no job would ever begin; give 1 or more, or all"
            )
        elif option in _PROFILE and values and values[0] != "none":
            _check_profile(values[0])


def _options(words: list[str]) -> list[tuple[str, list[str]]]:
    """Each option with the words up to the next one."""
    found: list[tuple[str, list[str]]] = []
    for word in words:
        if word == "--":
            break
        if word.startswith("-") and len(word) > 1:
            option, equals, value = word.partition("=")
            found.append((option, [value] if equals else []))
        elif found:
            found[-1][1].append(word)
    return found


def _check_config(values: list[str]) -> None:
    for value in values:
        key, equals, text = value.partition("=")
        if not equals:
            if value in TARGETS:
                raise UserError(
                    f"{value}: a target after --config is taken for a setting; type it first: `snakemake {value} --config ...`"
                )
            raise UserError(
                f"--config: expected key=value without spaces, found {value!r}; dotted keys: set='a.b=1 c.d=2'"
            )
        if re.search(r"[.\[]", key):
            quoted = f"set='{key}={text}'"
            raise UserError(f"--config {value}: dotted keys go through set; type: --config {quoted}")
    dotted = [value for value in values if value.startswith("set=")]
    if len(dotted) > 1:
        joined = " ".join(value.partition("=")[2] for value in dotted)
        raise UserError(
            f"--config: `set` is given {len(dotted)} times, and the last one would win; type: set='{joined}'"
        )
    words = " ".join(values)
    if dotted and len(values) > 1 and re.match(r"set=\S+ [a-z_]+=", words) and not _is_key_of_ours(values, dotted[0]):
        joined = words.removeprefix("set=")
        raise UserError(f"--config {words}: the shell has split it at the space; quote it: --config set='{joined}'")


def _is_key_of_ours(values: list[str], dotted: str) -> bool:
    """Whether the other words are top-level keys, which may be given with `set`."""
    from post_training.config.schema import GLOBAL, SHARED
    from post_training.methods import names

    known = {*GLOBAL, *SHARED, *names()}
    return all(value.partition("=")[0] in known for value in values if value != dotted)


def _check_files(values: list[str]) -> None:
    if not values:
        raise UserError("--configfile: expected the path of a YAML file")
    for value in values:
        path = Path(value)
        if path.is_file():
            if not _is_json(path) and not load_file(path):  # syntax, with line and column
                raise UserError(f"--configfile {value}: is empty, expected lines of `key: value`")
            continue
        if value in TARGETS or (value != values[0] and not path.suffix):
            if value in TARGETS:
                first = f"snakemake {value} --configfile {values[0]}"
                problem = "is a target after --configfile, which takes it for a file"
                raise UserError(f"{value}: {problem}; type it first: `{first}`")
            raise UserError(unknown_target(value))
        if path.is_dir():
            raise UserError(f"--configfile {value}: is a folder, expected a YAML file")
        there = [str(found) for found in (*path.parent.glob("*.yaml"), *Path("config").rglob("*.yaml"))]
        near = did_you_mean(value, there) if there else "there is no YAML file beside it"
        raise UserError(f"--configfile {value}: there is no such file. {near}")


def _is_json(path: Path) -> bool:
    """Whether a file is a JSON object; indented by tabs, that is no YAML."""
    try:
        return path.suffix == ".json" and isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (ValueError, OSError):
        return False


def _check_profile(value: str) -> None:
    """Snakemake continues without a workflow profile that it does not find, and so without the settings that it was to bring."""
    folders = [Path(value), Path("profiles") / value]
    if any(path.is_file() or (path / name).is_file() for path in folders for name in ("config.yaml", "profile.yaml")):
        return
    there = [path.name for path in Path("profiles").glob("*") if (path / "config.yaml").is_file()]
    clusters = [path.parent.name for path in Path("profiles").glob("*/slurm.yaml")]
    if Path(value).name in clusters:
        raise UserError(
            f"--workflow-profile {value}: is a cluster; type --workflow-profile profiles/slurm, and set slurm.cluster={value}"
        )
    offered = did_you_mean(Path(value).name, there) if there else "there is no folder profiles here"
    raise UserError(f"--workflow-profile {value}: there is no such profile. {offered}")
