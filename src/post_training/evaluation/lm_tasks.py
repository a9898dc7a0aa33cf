"""Loads tasks of lm-evaluation-harness by name, and their data into the cache of `datasets`, before any evaluation.

The rule `download_tasks` runs where snakemake does, since compute nodes may have no network.
"""

import difflib
import glob
import os
from pathlib import Path
from typing import Any

from post_training.core.errors import ConfigError, UserError, brief
from post_training.core.fingerprint import FileHashes
from post_training.core.locate import folder_sha256
from post_training.core.task import Task

_TASKS = "evaluation.lm_eval.tasks"
_INCLUDE_PATH = "evaluation.lm_eval.include_path"


def run(task: Task) -> None:
    """Load every task once, so that a wrong name and missing data are known early; the manifest lists the tasks.

    Raises ConfigError for a task that cannot be loaded, would run code, or is there twice.
    """
    refused = prepare(task.runtime)
    manager = task_manager(task.config, task.runtime, task.directory)
    found: dict[str, Any] = {}
    for name in task.config["tasks"]:
        try:
            tasks = manager.load([name])["tasks"]
            facts = {
                one: {"dataset": loaded.DATASET_PATH, "version": loaded.VERSION, "rows": len(loaded.eval_docs)}
                for one, loaded in tasks.items()
            }
        except Exception as error:  # tasks are their authors' code, and there is the network
            online = "; rows of the Hub: where there is internet, type the same command with --until download_tasks --config "
            remedy = f"{online}offline=false" if task.runtime["offline"] else ""
            problem = f"{name}: cannot be loaded ({type(error).__name__}: {brief(error)}){remedy}"
            raise ConfigError(_TASKS, problem) from None
        if refused:
            remedy = "allow it with model.trust_remote_code"
            raise ConfigError(_TASKS, f"{name}: wants {refused[0]} from the Hub, which is code; {remedy}")
        _check(tasks, task.runtime["include_path"])
        if twice := [one for one in facts if one in found]:
            problem = f"{name}: {twice[0]} is asked for by another name of the list, too; leave one out"
            raise ConfigError(_TASKS, problem)
        found |= facts
    for name, entry in found.items():
        print(f"task {name}: {entry['rows']:,} rows", flush=True)
    task.finish(files=[], tasks=found)


def task_manager(config: dict[str, Any], runtime: dict[str, Any], directory: Path) -> Any:
    """The `TaskManager` that knows the tasks of a configuration; after `prepare`.

    Args:
        config: `tasks`, and `include_path` as the digest of what is in the folder.
        runtime: `include_path`.
        directory: the stage's.

    Raises ConfigError for an unknown task, and UserError when the folder has changed.
    """
    from lm_eval.tasks import TaskManager

    folder, names = runtime["include_path"], config["tasks"]
    hashes = FileHashes(directory / ".file_hashes.json")
    if folder is not None and folder_sha256(Path(folder), hashes) != config["include_path"]:
        raise UserError(f"{folder}: changed since the run was planned; start again to use it as it is now")
    own = TaskManager(include_path=folder, include_defaults=False)
    if {*names} <= {*own.all_subtasks, *own.all_tags}:
        return own
    # A group of one's own may name tasks that come with lm_eval. Its index of 15,000 files takes seconds.
    manager = TaskManager(include_path=folder)
    for name in names:
        if name not in manager.task_index:
            close = difflib.get_close_matches(name, [*own.all_tasks, *manager.all_tasks], n=3)
            guess = f"Did you mean {' or '.join(map(repr, dict.fromkeys(close)))}? " if close else ""
            offered = f"include_path offers {', '.join(own.all_tasks) or 'none'}; " if folder is not None else ""
            problem = f"no task named {name!r}. {guess}{offered}`lm_eval ls tasks` lists those that come with it"
            raise ConfigError(_TASKS, problem)
    return manager


def prepare(runtime: dict[str, Any]) -> list[str]:
    """Set what the libraries read when they are imported, and refuse code of the Hub that is not allowed.

    lm_eval gets metrics that it does not have from `evaluate`, which runs a file of the Hub.

    Args:
        runtime: `offline` and `trust_remote_code`.

    Returns a list that grows with each refused metric: lm_eval does not report them. Raises UserError when lm_eval is
    missing.
    """
    if runtime["offline"]:
        os.environ |= dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_MININTERVAL", "30")  # a log, not a terminal
    refused: list[str] = []

    def refuse(path: str, *_: Any, **__: Any) -> None:
        refused.append(path)
        raise PermissionError(f"{path} is code of the Hub")

    try:
        import evaluate
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise UserError(f"lm_eval: cannot be imported ({error}); pip install lm-eval==0.4.13") from None
    if not runtime["trust_remote_code"]:
        evaluate.load = refuse
    return refused


def _check(tasks: dict[str, Any], folder: str | None) -> None:
    """Raise ConfigError for tasks that run code of the model, and for data files that could change unnoticed."""
    for one, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            remedy = "call lm_eval for it yourself, in a sandbox"
            raise ConfigError(_TASKS, f"{one}: runs code that the model writes; {remedy}")
        given = dict(task.dump_config()) if hasattr(task, "dump_config") else {}
        kwargs = given.get("dataset_kwargs") or {}
        source, data_dir = (str(value or "") for value in (given.get("dataset_path"), kwargs.get("data_dir")))
        for path in [source, *_rows(source, data_dir, _texts(kwargs.get("data_files")))]:
            for file in _local(path):
                if folder is None or not file.resolve().is_relative_to(Path(folder).resolve()):
                    problem = f"the task {one} reads {path}, which is not below it, so that a change would go unseen"
                    raise ConfigError(_INCLUDE_PATH, f"{problem}; put it there")


def _rows(source: str, data_dir: str, data_files: list[str]) -> list[str]:
    """Paths that `datasets` reads: relative files are below data_dir, which is below a folder or repository."""
    fixed = ("/", "~", "file://")
    if "/" in source and not os.path.exists(os.path.expanduser(source)):
        return [path for path in (data_dir, *data_files) if path.startswith(fixed)]
    base = os.path.join(source, data_dir) if os.path.isdir(os.path.expanduser(source)) else data_dir
    return [base, *(p if p.startswith(fixed) or "://" in p else os.path.join(base, p) for p in data_files)]


def _local(path: str) -> list[Path]:
    """The local files and folders that a path with wildcards and `~` matches; none for a URL."""
    expanded = os.path.expanduser(path.removeprefix("file://"))
    if "://" in expanded:
        return []
    return [Path(expanded)] if os.path.exists(expanded) else [*map(Path, glob.glob(expanded, recursive=True))]


def _texts(value: Any) -> list[str]:
    """Every text in nested lists and mappings."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in inner for text in _texts(one)]
