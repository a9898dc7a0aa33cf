"""Stages from sources to validated rows: download, transform."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from post_training.config.names import dataset_name, recorded_as
from post_training.core.errors import ConfigError, require
from post_training.core.locate import data_files, parse_split
from post_training.plan.files import Files
from post_training.plan.stage import Stage
from post_training.plan.transform_arguments import check_call


@dataclass(frozen=True)
class Sources:
    """Adds the stages of datasets to a plan, up to their validated rows."""

    add: Callable[[Stage], Stage]
    files: Files

    def held_out(self, entry: dict[str, Any], view: dict[str, Any], key: str, rows: str) -> Stage:
        """The dataset's `eval_split`, transformed: other files where local ones are named, else a split."""
        split, split_key = entry["eval_split"], f"{key}.eval_split"
        is_local = data_files(entry["path"], f"{key}.path", entry["split"]) is not None
        is_path = is_local and bool(data_files(split, split_key))
        name = f"{dataset_name(entry, key)}-eval"
        held = {**entry, "name": name, "path" if is_path else "split": split}
        return self.transform(held, view, key, rows, f"{key}.split" if is_path else split_key)

    def transform(
        self, entry: dict[str, Any], view: dict[str, Any], key: str, rows: str, split_key: str | None = None
    ) -> Stage:
        """One dataset as validated conversations or preferences; `split_key` names its split; None = `key.split`."""
        split_key = split_key or f"{key}.split"
        name, arguments = transform_call(entry["transform"], f"{key}.transform")
        source = self.files.transform(name, view["data"]["transform_modules"], f"{key}.transform")
        check_call(source, arguments, rows, f"{key}.transform")
        stage = Stage(
            kind="transform",
            label=dataset_name(entry, key),
            config={
                "transform": name,
                "arguments": arguments,
                "source": source.digest,
                "rows": rows,
                "slice": parse_split(entry["split"], split_key)[1],
                "last_turn": view["data"]["last_turn"],
            },
            inputs={"raw": self.download(entry, view, key, split_key)},
            runtime={
                "file": str(source.file),
                "max_reject_fraction": view["data"]["max_reject_fraction"],
                "strict": view["data"]["strict"],
                "num_proc": view["data"]["num_proc"],
            },
        )
        return self.add(stage)

    def download(self, entry: dict[str, Any], view: dict[str, Any], key: str, split_key: str) -> Stage:
        """The source's rows as files on this machine; local files stay where they are."""
        require(bool(entry["path"]), f"{key}.path", "is empty; give a file or a Hugging Face dataset id")
        files = data_files(entry["path"], f"{key}.path", entry["split"], split_key)
        if files is None:
            hub = {part: entry[part] for part in ("path", "subset", "revision")}
            hub["split"] = parse_split(entry["split"], split_key)[0]
            config: dict[str, Any] = {"hub": hub}
        else:
            path = recorded_as(entry["path"], entry["split"])
            config = {"sha256": [sha for _, sha in self.files.digests(path, files, f"{key}.path")]}
        runtime = {"files": [str(path) for path in files or []], "offline": view["offline"]}
        label = dataset_name(entry, key)
        stage = self.add(Stage(kind="download", label=label, config=config, runtime=runtime))
        if files is None and view["offline"]:
            self.files.note_hub("dataset", entry["path"], f"{key}.path", stage)
        return stage


def transform_call(transform: Any, key: str) -> tuple[str, dict[str, Any]]:
    """`alpaca` or `{name: alpaca, output: response}` -> name and arguments."""
    if isinstance(transform, str):
        return transform, {}
    if isinstance(transform, dict) and isinstance(transform.get("name"), str):
        return transform["name"], {key: value for key, value in transform.items() if key != "name"}
    raise ConfigError(key, f"found {transform!r}, expected a name or {{name: ..., argument: value}}")
