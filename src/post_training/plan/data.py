"""Stages from sources to the rows that a trainer reads: download, transform, tokenize, mix. Light."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from post_training import methods
from post_training.config import batch
from post_training.config.names import dataset_name, recorded_as
from post_training.core.errors import ConfigError, require
from post_training.core.locate import data_files, parse_split
from post_training.plan.files import Files
from post_training.plan.filters import Filters
from post_training.plan.stage import Stage


@dataclass(frozen=True)
class DataStages:
    """Adds data stages to a plan."""

    add: Callable[[Stage], Stage]
    files: Files

    def mix(self, view: dict[str, Any], model: Stage) -> Stage:
        """The rows that a stage trains on."""
        method, name_of_stage, data = view["method"], view["stage"], view["data"]
        module = methods.load(method)
        inputs: dict[str, Stage] = {}
        table, names = [], []
        filters = Filters(self, view)
        for index, entry in enumerate(data["datasets"]):
            key = f"{name_of_stage}.data.datasets[{index}]"
            name = dataset_name(entry, key)
            require(name not in names, f"{key}.name", f"{name!r} is used twice; give each dataset its own name")
            names.append(name)
            amount = _amount(entry, key)
            rows = filters.filter(self.transform(entry, view, key, module.ROWS), name, amount != {"weight": 0})
            tokenized = self.tokenize(rows, view, model)
            if amount != {"weight": 0}:
                inputs[name] = tokenized
                table.append({"name": name, **amount})
            if entry["eval_split"] is not None:
                inputs[f"eval:{name}"] = self.tokenize(self.held_out(entry, view, key, module.ROWS), view, model)
        require(bool(table), f"{name_of_stage}.data.datasets", "every weight is 0; give one dataset a weight above 0")
        fraction = data["eval_fraction"]
        require(0 <= fraction < 1, "data.eval_fraction", f"found {fraction}, expected a share from 0 to below 1")
        config = {
            "datasets": sorted(table, key=lambda row: str(row["name"])),
            "rows": module.ROWS,
            "seed": data["seed"],
            "max_seq_length": view[method]["max_seq_length"],
            "packing": module.packs(view[method]),
            "overlong": view[method].get("overlong", "drop"),
            "eval_fraction": fraction,
        }
        # How long is trained decides how many epochs are laid out, and no row of any of them.
        training = view["training"]
        runtime = {
            "steps": batch.steps(view, method),
            "epochs": training["num_train_epochs"],
            "batch": training["effective_batch_size"],
        }
        return self.add(
            Stage(kind="mix", folder="data/mixed", label=method, config=config, inputs=inputs, runtime=runtime)
        )

    def held_out(self, entry: dict[str, Any], view: dict[str, Any], key: str, rows: str) -> Stage:
        """The dataset's `eval_split`, transformed: other files where local ones are named, else a split."""
        split, split_key = entry["eval_split"], f"{key}.eval_split"
        is_path = data_files(entry["path"], split_key, entry["split"]) is not None and bool(
            data_files(split, split_key)
        )
        name = f"{dataset_name(entry, key)}-eval"
        held = {**entry, "name": name, "path" if is_path else "split": split}
        return self.transform(held, view, key, rows)

    def tokenize(self, transformed: Stage, view: dict[str, Any], model: Stage) -> Stage:
        """Token ids of one dataset under the tokenizer and the chat template."""
        method = view["method"]
        text = self.files.chat_template(view["data"]["chat_template"])
        stage = Stage(
            kind="tokenize",
            folder="data/tokenized",
            label=transformed.label,
            config={
                "chat_template": text,
                "rows": transformed.config["rows"],
                "special_tokens_in_content": view["data"]["special_tokens_in_content"],
                **({"train_on": view[method]["train_on"]} if "train_on" in view[method] else {}),
            },
            inputs={"rows": transformed, "model": model},
            # Other weights or another size of model leave the tokens as they are.
            identity={"rows": transformed.fingerprint, "tokenizer": model.config["tokenizer"]},
            runtime={"num_proc": view["data"]["num_proc"]},
        )
        return self.add(stage)

    def transform(self, entry: dict[str, Any], view: dict[str, Any], key: str, rows: str) -> Stage:
        """One dataset as validated conversations or preferences."""
        name, arguments = transform_call(entry["transform"], f"{key}.transform")
        source = self.files.transform(name, view["data"]["transform_modules"], f"{key}.transform")
        stage = Stage(
            kind="transform",
            folder="data/transformed",
            label=dataset_name(entry, key),
            config={
                "transform": name,
                "arguments": arguments,
                "source": source.digest,
                "rows": rows,
                "slice": parse_split(entry["split"], f"{key}.split")[1],
                "last_turn": view["data"]["last_turn"],
            },
            inputs={"raw": self.download(entry, view, key)},
            runtime={
                "file": str(source.file),
                "max_reject_fraction": view["data"]["max_reject_fraction"],
                "strict": view["data"]["strict"],
                "num_proc": view["data"]["num_proc"],
            },
        )
        return self.add(stage)

    def download(self, entry: dict[str, Any], view: dict[str, Any], key: str) -> Stage:
        """The source's rows as files on this machine; local files stay where they are."""
        require(bool(entry["path"]), f"{key}.path", "is empty; give a file or a Hugging Face dataset id")
        files = data_files(entry["path"], f"{key}.path", entry["split"])
        if files is None:
            hub = {part: entry[part] for part in ("path", "subset", "revision")}
            hub["split"] = parse_split(entry["split"], f"{key}.split")[0]
            config: dict[str, Any] = {"hub": hub}
        else:
            path = recorded_as(entry["path"], entry["split"])
            config = {"sha256": [sha for _, sha in self.files.digests(path, files, f"{key}.path")]}
        runtime = {"files": [str(path) for path in files or []], "offline": view["offline"]}
        label = dataset_name(entry, key)
        stage = self.add(Stage(kind="download", folder="data/raw", label=label, config=config, runtime=runtime))
        if files is None and view["offline"]:
            self.files.note_hub("dataset", entry["path"], f"{key}.path", stage)
        return stage


def _amount(entry: dict[str, Any], key: str) -> dict[str, Any]:
    """How much of a dataset is used: exactly one of `weight`, `rows` and `tokens`."""
    given = {kind: entry[kind] for kind in ("rows", "tokens") if entry[kind] is not None}
    if entry["weight"] != 1.0 or not given:
        given["weight"] = entry["weight"]
    found = " and ".join(f"{kind}={value:g}" for kind, value in given.items())
    require(len(given) == 1, f"{key}.{next(iter(given))}", f"found {found}; give one of weight, rows and tokens")
    ((kind, value),) = given.items()
    lowest = 0 if kind == "weight" else 1
    require(lowest <= value < float("inf"), f"{key}.{kind}", f"found {value}, expected {lowest} or more")
    return given


def transform_call(transform: Any, key: str) -> tuple[str, dict[str, Any]]:
    """`alpaca` or `{name: alpaca, output: response}` -> name and arguments."""
    if isinstance(transform, str):
        return transform, {}
    if isinstance(transform, dict) and isinstance(transform.get("name"), str):
        return transform["name"], {key: value for key, value in transform.items() if key != "name"}
    raise ConfigError(key, f"found {transform!r}, expected a name or {{name: ..., argument: value}}")
