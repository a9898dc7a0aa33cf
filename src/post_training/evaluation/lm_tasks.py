"""Tasks of lm-evaluation-harness by name, and their rows in the cache of `datasets`, before a model is asked.

The rule `download_tasks` runs where snakemake does, since compute nodes may have no network.
"""

import difflib
import glob
import os
from pathlib import Path
from typing import Any

from post_training.core.errors import ConfigError, UserError
from post_training.core.fingerprint import FileHashes
from post_training.core.locate import folder_sha256
from post_training.core.task import Task

_TASKS = "evaluation.lm_eval.tasks"
_INCLUDE_PATH = "evaluation.lm_eval.include_path"


def run(task: Task) -> None:
    """Load every task once, so that a wrong name and missing rows are known now; the manifest says what there is."""
    refused = prepare(task.runtime)
    manager = task_manager(task.config, task.runtime, task.directory)
    found: dict[str, Any] = {}
    for name in task.config["tasks"]:
        try:
            tasks = manager.load([name])["tasks"]
            told = {
                one: {"dataset": task.DATASET_PATH, "version": task.VERSION, "rows": len(task.eval_docs)}
                for one, task in tasks.items()
            }
        except Exception as error:  # a task is its author's, and so is what it raises; or it is the network's
            reason = " ".join(str(error).split())[:300]
            online = "; rows of the Hub: where there is internet, type the same command with --until download_tasks --config "
            remedy = f"{online}offline=false" if task.runtime["offline"] else ""
            raise ConfigError(_TASKS, f"{name}: cannot be loaded ({type(error).__name__}: {reason}){remedy}") from None
        if refused:
            raise ConfigError(
                _TASKS, f"{name}: wants {refused[0]} from the Hub, which is code; allow it with model.trust_remote_code"
            )
        _check(tasks, task.runtime["include_path"])
        if twice := [one for one in told if one in found]:
            raise ConfigError(
                _TASKS, f"{name}: {twice[0]} is asked for by another name of the list, too; leave one out"
            )
        found |= told
    for name, facts in found.items():
        print(f"task {name}: {facts['rows']:,} rows", flush=True)
    task.finish(files=[], tasks=found)


def task_manager(config: dict[str, Any], runtime: dict[str, Any], directory: Path) -> Any:
    """The `TaskManager` that knows the tasks of a configuration; after `prepare`.

    Args:
        config: `tasks`, and `include_path` as the digest of what is in the folder.
        runtime: `include_path`.
        directory: the stage's.

    Raises ConfigError for a name that is no task, and UserError when the folder has changed.
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
            raise ConfigError(
                _TASKS, f"no task named {name!r}. {guess}{offered}`lm_eval ls tasks` lists those that come with it"
            )
    return manager


def prepare(runtime: dict[str, Any]) -> list[str]:
    """Settings that the libraries read when they are imported; and nothing of the Hub's is run that was not allowed.

    A metric that lm_eval does not have it asks of `evaluate`, which runs a file of the Hub.

    Args:
        runtime: `offline` and `trust_remote_code`.

    Returns the metrics that were asked for and refused, as they come: lm_eval tells nobody. Raises UserError when lm_eval
    is missing.
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
    """Refuse what would run code that nobody has read, and rows that could change unseen."""
    for one, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise ConfigError(
                _TASKS, f"{one}: runs code that the model writes; call lm_eval for it yourself, in a sandbox"
            )
        given = dict(task.dump_config()) if hasattr(task, "dump_config") else {}
        kwargs = given.get("dataset_kwargs") or {}
        source, data_dir = (str(value or "") for value in (given.get("dataset_path"), kwargs.get("data_dir")))
        for path in [source, *_rows(source, data_dir, _texts(kwargs.get("data_files")))]:
            for file in _local(path):
                if folder is None or not file.resolve().is_relative_to(Path(folder).resolve()):
                    raise ConfigError(
                        _INCLUDE_PATH,
                        f"the task {one} reads {path}, which is not below it, so that a change would go unseen; put it there",
                    )


def _rows(source: str, data_dir: str, data_files: list[str]) -> list[str]:
    """Where `datasets` looks for a task's rows: relative files are below data_dir, which is below a folder or repository."""
    fixed = ("/", "~", "file://")
    if "/" in source and not os.path.exists(os.path.expanduser(source)):
        return [path for path in (data_dir, *data_files) if path.startswith(fixed)]
    base = os.path.join(source, data_dir) if os.path.isdir(os.path.expanduser(source)) else data_dir
    return [
        base,
        *(path if path.startswith(fixed) or "://" in path else os.path.join(base, path) for path in data_files),
    ]


def _local(path: str) -> list[Path]:
    """The files and folders of this machine that a text means, wildcards and `~` too; none for an address."""
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
