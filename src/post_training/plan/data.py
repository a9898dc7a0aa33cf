"""Stages from validated rows to the sequences that a trainer reads: filter, tokenize, mix."""

from collections.abc import Callable
from typing import Any

from post_training import methods
from post_training.config import batch
from post_training.config.names import dataset_name
from post_training.core.errors import require
from post_training.plan.filters import Filters
from post_training.plan.generated_keys import is_generated
from post_training.plan.sources import Sources
from post_training.plan.stage import Stage


class DataStages(Sources):
    """Adds data stages to a plan."""

    def mix(self, view: dict[str, Any], model: Stage, generated: Callable[..., Stage]) -> Stage:
        """The rows that a stage trains on; `generated` plans those that a model writes."""
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
            made = generated if is_generated(entry) else self.transform
            rows = filters.filter(made(entry, view, key, module.ROWS), name, amount != {"weight": 0})
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
            "packing": methods.packs(view),
            "overlong": view[method].get("overlong", "drop"),
            "eval_fraction": fraction,
        }
        # The length of training decides how many epochs are written, and no sequence of any of them.
        training = view["training"]
        runtime = {
            "steps": batch.steps(view, method),
            "epochs": training["num_train_epochs"],
            "batch": training["effective_batch_size"],
        }
        return self.add(Stage(kind="mix", label=method, config=config, inputs=inputs, runtime=runtime))

    def tokenize(self, transformed: Stage, view: dict[str, Any], model: Stage) -> Stage:
        """Token ids of one dataset under the tokenizer and the chat template."""
        method = view["method"]
        text = self.files.chat_template(view["data"]["chat_template"])
        stage = Stage(
            kind="tokenize",
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
            runtime={key: view["data"][key] for key in ("num_proc", "max_reject_fraction")},
        )
        return self.add(stage)


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
