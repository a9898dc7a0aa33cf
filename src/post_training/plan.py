"""Configuration -> stages, their fingerprints and paths: everything the Snakefile needs. Light.

A stage's directory is named by a fingerprint of what decides its content: its own keys, the
fingerprints of its inputs, the text of what it applies, and a version that is raised by hand when
its code changes results. Where and how fast it runs (`runtime`) never enters.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from post_training import batch, methods, registry
from post_training.config.load import Pipeline
from post_training.errors import ConfigError, did_you_mean
from post_training.fingerprint import FileHashes, canonical, digest, digest_files, is_safe_name, slug
from post_training.locate import TOKENIZER_FILES, data_files, in_hub_cache, model_files, model_folder, parse_split
from post_training.model.lora import check_lora
from post_training.slurm import placement
from post_training.zero import deepspeed_config

# Raise a number when a change of the stage's code changes what it writes.
VERSIONS = {
    "download": 2,
    "download_model": 1,
    "build_model": 1,
    "transform": 2,
    "tokenize": 3,
    "mix": 3,
    "reference": 1,
    "train": 1,
    "export": 1,
    "evaluate": 1,
    "report": 1,
}
POLICIES = ("encode_as_text", "reject", "allow")
# Keys of the training section that say how fast, not what.
_SPEED_KEYS = ("per_device_train_batch_size", "gradient_checkpointing", "use_liger_kernel")


@dataclass(frozen=True)
class Stage:
    """One file target: what it is made from and where it goes."""

    kind: str
    folder: str
    """Directory of its kind below the output base, `data/raw` for instance."""
    label: str
    config: dict[str, Any]
    """The keys that decide its content."""
    inputs: dict[str, "Stage"] = field(default_factory=dict)
    identity: dict[str, str] | None = None
    """Fingerprints that stand for the inputs where less than the whole input matters."""
    runtime: dict[str, Any] = field(default_factory=dict)
    """What the job needs to know besides; never makes it stale."""
    separator: str = "-"

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over everything that decides the content."""
        inputs = (
            {name: stage.fingerprint for name, stage in self.inputs.items()} if self.identity is None else self.identity
        )
        return digest([self.kind, VERSIONS[self.kind], self.config, inputs])

    @cached_property
    def name(self) -> str:
        """The directory's own name."""
        return f"{self.label}{self.separator}{self.fingerprint[:8]}"

    @property
    def wildcard(self) -> str:
        """What its rule's wildcard matches."""
        return self.name

    @property
    def directory(self) -> str:
        """Directory below the output base."""
        return f"{self.folder}/{self.name}" if self.folder else self.name

    @property
    def manifest(self) -> str:
        """The file that exists when the stage is whole."""
        return f"{self.directory}/manifest.json"

    @cached_property
    def spec(self) -> str:
        """What the job is told, as canonical JSON: stable for a fingerprint, so Snakemake may track it."""
        fingerprints = {name: stage.fingerprint for name, stage in self.inputs.items()}
        return canonical(
            {"stage": self.kind, "fingerprint": self.fingerprint, "config": self.config, "inputs": fingerprints}
        )


@dataclass
class Plan:
    """All stages of a pipeline, by kind, and the ones that a person asks for."""

    pipeline: Pipeline
    base: Path
    run_name: str
    stages: dict[str, dict[str, Stage]] = field(default_factory=dict)
    """Kind -> the rule's wildcard -> stage."""
    trained: dict[str, Stage] = field(default_factory=dict)
    """Name of a stage in the configuration -> its training, first to last."""
    exported: dict[str, Stage] = field(default_factory=dict)
    mixed: dict[str, Stage] = field(default_factory=dict)
    evaluated: dict[str, Stage] = field(default_factory=dict)
    """`base` and each name -> the evaluation of that model."""
    report: Stage | None = None

    def add(self, stage: Stage) -> Stage:
        """Register a stage; equal stages of two branches are one."""
        return self.stages.setdefault(stage.kind, {}).setdefault(stage.wildcard, stage)

    def view_of(self, stage: Stage) -> dict[str, Any]:
        """The flat configuration that a job belongs to; of data, which several may share, the last one."""
        for name, trained in self.trained.items():
            if any(stage is own for own in (trained, self.exported[name], trained.inputs.get("reference"))):
                return self.pipeline.views[name]
        return self.pipeline.last

    def links(self) -> dict[str, str]:
        """Name of each link below the base -> the run directory that it leads to."""
        named = {f"{self.run_name}-{name}": stage.directory for name, stage in self.trained.items()}
        return named | {self.run_name: list(self.trained.values())[-1].directory}


def make_plan(pipeline: Pipeline) -> Plan:
    """Plan every stage. Reads local data and model files for their hashes; writes nothing of note."""
    view = pipeline.last
    base = Path(view["paths"]["debug_base"] if view["debug"]["enabled"] else view["paths"]["output_base"])
    _check_paths(view)
    hashes = FileHashes(base / ".file_hashes.json")
    for name in pipeline.stages:
        check_view(name, pipeline)
    plan = Plan(pipeline, base, "")
    planner = _Planner(plan, hashes)
    for name in pipeline.stages:
        planner.add_stage(name)
    plan.run_name = view["run_name"] or planner.auto_name(view)
    planner.add_evaluations()
    return plan


def check_view(name: str, pipeline: Pipeline) -> None:
    """Everything about one stage's keys that needs no data and no devices."""
    view = pipeline.views[name]
    method = view["method"]
    try:
        batch.check_length(view, method)
        methods.load(method).check(view)
    except ConfigError as error:
        # A method knows its keys by its own name, the person by the stage's.
        own, _, rest = error.key.partition(".")
        raise (ConfigError(f"{name}.{rest}", error.problem) if own == method else error) from None
    check_lora(view)
    placement.check(view)
    limit = view["checkpointing"]["save_total_limit"]
    _require(
        limit is None or limit >= 2,
        "checkpointing.save_total_limit",
        f"found {limit}; rotation happens before the new checkpoint is verified, so 2 or more must be kept, or null for all",
    )
    _require(view["checkpointing"]["save_steps"] >= 1, "checkpointing.save_steps", "expected 1 or more")
    _require(view["logging"]["logging_steps"] >= 1, "logging.logging_steps", "expected 1 or more")
    for target in view["logging"]["report_to"]:
        _require(
            target in ("tensorboard", "wandb", "none"),
            "logging.report_to",
            f"found {target!r}. {did_you_mean(target, ['tensorboard', 'wandb', 'none'])}",
        )
    _check_types(view)
    policy = view["data"]["special_tokens_in_content"]
    _require(
        policy in POLICIES, "data.special_tokens_in_content", f"found {policy!r}. {did_you_mean(policy, POLICIES)}"
    )
    fraction = view["data"]["max_reject_fraction"]
    _require(0 <= fraction <= 1, "data.max_reject_fraction", f"found {fraction}, expected a share from 0 to 1")
    last = view["data"]["last_turn"]
    _require(last in ("trim", "reject"), "data.last_turn", f"found {last!r}. {did_you_mean(last, ['trim', 'reject'])}")
    _require(view["data"]["num_proc"] is None or view["data"]["num_proc"] >= 1, "data.num_proc", "expected 1 or more")
    length = view[method]["max_seq_length"]
    _require(length >= 2, f"{name}.max_seq_length", f"found {length}, expected 2 or more tokens")
    _require(
        bool(view["data"]["datasets"]), f"{name}.data.datasets", "no dataset; give data.datasets or the stage's own"
    )


def _check_types(view: dict[str, Any]) -> None:
    """Number formats that must agree, and launcher keys of which only one value exists."""
    matching = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
    dtype, precision = view["model"]["dtype"], view["accelerate"]["mixed_precision"]
    _require(dtype in matching, "model.dtype", f"found {dtype!r}. {did_you_mean(dtype, matching)}")
    _require(
        precision in (None, matching.get(dtype)),
        "accelerate.mixed_precision",
        f"found {precision!r}, but model.dtype {dtype} needs {matching.get(dtype)!r} (or null)",
    )
    for key, only in (("deepspeed_multinode_launcher", "standard"), ("same_network", True), ("rdzv_backend", "static")):
        found = view["accelerate"][key]
        _require(
            found == only, f"accelerate.{key}", f"found {found!r}; ranks are started by srun, only {only!r} is possible"
        )
    zero = deepspeed_config(view)  # whose file must be there, whether it is asked for by name or not
    _require(
        view["accelerate"]["use_deepspeed"] is not True or zero is not None,
        "accelerate.use_deepspeed",
        "true needs deepspeed.config_path, such as config/deepspeed/zero2.yaml",
    )


def _check_paths(view: dict[str, Any]) -> None:
    name = view["run_name"]
    _require(
        name is None or is_safe_name(name),
        "run_name",
        f"found {name!r}; use letters, digits, '.', '_' and '-' only, beginning with a letter or digit",
    )
    reserved = ("data", "models", "evaluations", "reports")
    _require(name not in reserved, "run_name", f"found {name!r}, a folder of the workflow's own; choose another name")
    for key in ("output_base", "debug_base"):
        path = view["paths"][key]
        forbidden = sorted(set(path) & set("\"'`$;&|<>(){}*?[]\\\n\t\0 "))
        _require(
            bool(path) and not forbidden,
            f"paths.{key}",
            f"found {path!r}; use a path without spaces and shell characters",
        )
    _require(
        not view["debug"]["override_existing"] or view["debug"]["enabled"],
        "debug.override_existing",
        "true needs debug.enabled=true: only debug runs are ever wiped",
    )


def _require(holds: bool, key: str, problem: str) -> None:
    if not holds:
        raise ConfigError(key, problem)


class _Planner:
    """Adds the stages of one pipeline to a plan."""

    def __init__(self, plan: Plan, hashes: FileHashes) -> None:
        self.plan = plan
        self.hashes = hashes
        self.views = plan.pipeline.views
        self.base_model: Stage | None = None

    def add_stage(self, name: str) -> None:
        """Data, training and export of one stage of the configuration."""
        view = self.views[name]
        parent = view[view["method"]]["init_from"]
        if parent == "base":
            self.base_model = self.model(view["model"], view["offline"], "model", view["data"]["chat_template"])
            start = self.base_model
        else:
            self._check_same_as_parent(name, parent)
            start = self.plan.exported[parent]
        mixed = self.plan.mixed[name] = self.mix(view)
        inputs = {"model": start, "data": mixed, **self._reference(view, start, mixed)}
        train = self.plan.trained[name] = self.plan.add(self._train(view, inputs))
        export = Stage(
            kind="export",
            folder=train.directory,
            label="model",
            config={"method": view["method"]},
            inputs={"train": train, "data": mixed},
            runtime={"max_shard_size": view["export"]["max_shard_size"]},
        )
        self.plan.exported[name] = self.plan.add(_InRunDirectory(**export.__dict__))

    def _reference(self, view: dict[str, Any], start: Stage, mixed: Stage) -> dict[str, Stage]:
        """What training needs besides model and rows: stored log-probabilities, or another model to compute them with."""
        method = view["method"]
        name, key = view[method].get("ref_model_name_or_path"), f"{view['stage']}.ref_model_name_or_path"
        other = {**view["model"], "name_or_path": name, "revision": None, "from_scratch": None}
        model = self.model(other, view["offline"], key) if name is not None else None
        decides = getattr(methods.load(method), "stored_reference", lambda _: None)(view)
        if decides is None:
            return {"reference_model": model} if model else {}
        config = {
            "method": method,
            "max_seq_length": view[method]["max_seq_length"],
            "model": {key: view["model"][key] for key in ("dtype", "trust_remote_code")},
            **decides,
        }
        if view["model"]["lora"] is not None and view["model"]["dtype"] != "float32":
            # Beside adapters the weights are loaded in model.dtype, which rounds otherwise than float32 weights do.
            config["weights"] = view["model"]["dtype"]
        stored = Stage(
            kind="reference",
            folder="data/reference",
            label=method,
            config=config,
            inputs={"model": model or start, "data": mixed},
            runtime={"pipeline": self.plan.pipeline.frozen(view["stage"])},
        )
        return {"reference": self.plan.add(stored)}

    def _train(self, view: dict[str, Any], inputs: dict[str, Stage]) -> Stage:
        method = view["method"]
        module = methods.load(method)
        not_own = ("init_from", "ref_model_name_or_path", *getattr(module, "SPEED_KEYS", ()))
        own = {key: value for key, value in view[method].items() if key not in not_own}
        speed = set(_SPEED_KEYS)
        if getattr(module, "micro_batch_decides", lambda _: False)(view):
            speed.remove("per_device_train_batch_size")
        training = {key: value for key, value in view["training"].items() if key not in speed}
        lora = {"lora": view["model"]["lora"]} if view["model"]["lora"] is not None else {}
        config = {
            "method": method,
            method: own,
            "training": training,
            "model": {key: view["model"][key] for key in ("dtype", "trust_remote_code")} | lora,
        }
        # By method: what a stage is called decides nothing.
        label = f"{method}-{self._model_label(view['model'])}"
        frozen = self.plan.pipeline.frozen(view["stage"])
        return Stage(kind="train", folder="", label=label, config=config, inputs=inputs, runtime={"pipeline": frozen})

    def _check_same_as_parent(self, name: str, parent: str) -> None:
        ours, theirs = self.views[name], self.views[parent]
        for section, key in (("model", "name_or_path"), ("model", "from_scratch"), ("data", "chat_template")):
            _require(
                ours[section][key] == theirs[section][key],
                f"{name}.{section}.{key}",
                f"differs from {parent}'s, but {name} starts from {parent}'s model, whose tokenizer and template it keeps; "
                f"give it once, under {section}, or set {name}.init_from=base",
            )

    def mix(self, view: dict[str, Any]) -> Stage:
        """The rows that a stage trains on."""
        method, name_of_stage, data = view["method"], view["stage"], view["data"]
        module = methods.load(method)
        inputs: dict[str, Stage] = {}
        table, names = [], []
        for index, entry in enumerate(data["datasets"]):
            key = f"{name_of_stage}.data.datasets[{index}]"
            name = self.dataset_name(entry, key)
            _require(name not in names, f"{key}.name", f"{name!r} is used twice; give each dataset its own name")
            names.append(name)
            amount = _amount(entry, key)
            tokenized = self.tokenize(self.transform(entry, view, key, module.ROWS), view)
            if amount != {"weight": 0}:
                inputs[name] = tokenized
                table.append({"name": name, **amount})
            if entry["eval_split"] is not None:
                held = self._held_out(entry, name, f"{key}.eval_split")
                inputs[f"eval:{name}"] = self.tokenize(self.transform(held, view, key, module.ROWS), view)
        _require(bool(table), f"{name_of_stage}.data.datasets", "every weight is 0; give one dataset a weight above 0")
        fraction = data["eval_fraction"]
        _require(0 <= fraction < 1, "data.eval_fraction", f"found {fraction}, expected a share from 0 to below 1")
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
        return self.plan.add(
            Stage(kind="mix", folder="data/mixed", label=method, config=config, inputs=inputs, runtime=runtime)
        )

    def _held_out(self, entry: dict[str, Any], name: str, key: str) -> dict[str, Any]:
        """The dataset's `eval_split` as a dataset: other files where local ones are named, else a split."""
        split = entry["eval_split"]
        is_path = data_files(entry["path"], key, entry["split"]) is not None and bool(data_files(split, key))
        return {**entry, "name": f"{name}-eval", "path" if is_path else "split": split}

    def tokenize(self, transformed: Stage, view: dict[str, Any]) -> Stage:
        """Token ids of one dataset under the tokenizer and the chat template."""
        assert self.base_model is not None
        method = view["method"]
        text = registry.chat_template_text(view["data"]["chat_template"])
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
            inputs={"rows": transformed, "model": self.base_model},
            # Other weights or another size of model leave the tokens as they are.
            identity={"rows": transformed.fingerprint, "tokenizer": self.base_model.config["tokenizer"]},
            runtime={"num_proc": view["data"]["num_proc"]},
        )
        return self.plan.add(stage)

    def transform(self, entry: dict[str, Any], view: dict[str, Any], key: str, rows: str) -> Stage:
        """One dataset as validated conversations or preferences."""
        name, arguments = transform_call(entry["transform"], f"{key}.transform")
        source = registry.find_transform(name, view["data"]["transform_modules"], f"{key}.transform")
        stage = Stage(
            kind="transform",
            folder="data/transformed",
            label=self.dataset_name(entry, key),
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
        return self.plan.add(stage)

    def download(self, entry: dict[str, Any], view: dict[str, Any], key: str) -> Stage:
        """The source's rows as files on this machine; local files stay where they are."""
        _require(bool(entry["path"]), f"{key}.path", "is empty; give a file or a Hugging Face dataset id")
        files = data_files(entry["path"], f"{key}.path", entry["split"])
        if files is None:
            hub = {part: entry[part] for part in ("path", "subset", "revision")}
            hub["split"] = parse_split(entry["split"], f"{key}.split")[0]
            config: dict[str, Any] = {"hub": hub}
            self._check_offline("dataset", entry["path"], view["offline"], f"{key}.path")
        else:
            config = {"sha256": [sha for _, sha in digest_files(files, self.hashes)]}
        runtime = {"files": [str(path) for path in files or []], "offline": view["offline"]}
        label = self.dataset_name(entry, key)
        return self.plan.add(Stage(kind="download", folder="data/raw", label=label, config=config, runtime=runtime))

    def model(self, model: dict[str, Any], offline: bool, key: str, chat_template: str = "chatml") -> Stage:
        """The starting model as a folder on this machine; a new one's tokenizer has the template's tokens."""
        path, scratch = model["name_or_path"], model["from_scratch"]
        if (path is None) == (scratch is None):
            both = "both are given" if path is not None else "neither is given"
            raise ConfigError("model.name_or_path", f"give either it or model.from_scratch; {both}")
        runtime: dict[str, Any] = {"offline": offline, "trust_remote_code": model["trust_remote_code"]}
        if scratch is not None:
            corpus = [
                file for path in scratch["corpus"] for file in data_files(path, "model.from_scratch.corpus") or []
            ]
            _require(bool(corpus), "model.from_scratch.corpus", "no file; the tokenizer needs text to be trained on")
            trained_on = {
                "vocab_size": scratch["vocab_size"],
                "special_tokens": _new_tokens(chat_template),
                "corpus": [s for _, s in digest_files(corpus, self.hashes)],
            }
            weights = {part: scratch[part] for part in ("model_type", "config", "seed")}
            config = {"tokenizer": digest(trained_on), "weights": weights, **trained_on}
            runtime["corpus"] = [str(file) for file in corpus]
            return self.plan.add(_model_stage("build_model", f"scratch-{scratch['model_type']}", config, runtime))
        folder = model_folder(path, f"{key}.name_or_path" if key == "model" else key)
        if folder is None:
            self._check_offline("model", path, offline, f"{key}.name_or_path" if key == "model" else key)
            hub = {"name_or_path": path, "revision": model["revision"] or "main"}
            return self.plan.add(
                _model_stage("download_model", slug(path), {"hub": hub, "tokenizer": digest(hub)}, runtime)
            )
        files = digest_files(model_files(folder), self.hashes, root=folder)
        config = {"sha256": files, "tokenizer": digest([row for row in files if Path(row[0]).name in TOKENIZER_FILES])}
        runtime["folder"] = str(folder)
        return self.plan.add(_model_stage("download_model", slug(folder.name), config, runtime))

    def add_evaluations(self) -> None:
        """Each exported model, and the one that the first stage starts from, on the held-out rows."""
        assert self.base_model is not None
        view = self.plan.pipeline.last
        models = {"base": self.base_model, **self.plan.exported}
        inputs: dict[str, Stage] = {}
        for index, entry in enumerate(view["evaluation"]["datasets"]):
            key = f"evaluation.datasets[{index}]"
            inputs[self.dataset_name(entry, key)] = self.transform(entry, view, key, "any")
        for name, mixed in self.plan.mixed.items():
            if mixed.config["eval_fraction"] or any(part.startswith("eval:") for part in mixed.inputs):
                inputs[f"held-out {name}"] = mixed
        if inputs:
            for name, model in models.items():
                self.plan.evaluated[name] = self.plan.add(self._evaluation(name, model, inputs, view))
        graph = {**{f"train_{name}": stage for name, stage in self.plan.trained.items()}}
        graph |= {f"export_{name}": stage for name, stage in self.plan.exported.items()}
        graph |= {f"evaluate_{name}": stage for name, stage in self.plan.evaluated.items()}
        label = list(self.plan.trained.values())[-1].label
        self.plan.report = self.plan.add(Stage("report", "reports", label, config={}, inputs=graph))

    def _evaluation(self, name: str, model: Stage, rows: dict[str, Stage], view: dict[str, Any]) -> Stage:
        config = {key: view["evaluation"][key] for key in ("max_samples", "max_new_tokens")}
        config["chat_template"] = registry.chat_template_text(view["data"]["chat_template"])
        runtime = {"batch_size": view["evaluation"]["batch_size"]}
        label = self.views[name]["method"] if name != "base" else f"base-{model.label}"
        return Stage("evaluate", "evaluations", label, config, {"model": model, **rows}, runtime=runtime)

    def _check_offline(self, kind: str, hub_id: str, offline: bool, key: str) -> None:
        if offline and not in_hub_cache(kind, hub_id):
            raise ConfigError(
                key,
                f"{hub_id} is not on this machine and offline is true; run once with offline=false "
                "where there is internet, or give a local path",
            )

    def dataset_name(self, entry: dict[str, Any], key: str) -> str:
        """The dataset's name, given or made from its path."""
        path = entry["path"][0] if isinstance(entry["path"], list) else entry["path"]
        name = entry["name"] or slug(Path(path).name.split(".")[0])
        _require(is_safe_name(name), f"{key}.name", f"found {name!r}; use letters, digits, '.', '_' and '-' only")
        return str(name)

    def _model_label(self, model: dict[str, Any]) -> str:
        if model["from_scratch"] is not None:
            return f"scratch-{slug(model['from_scratch']['model_type'])}"
        folder = model_folder(model["name_or_path"], "model.name_or_path")
        return slug(folder.resolve().name if folder else model["name_or_path"])

    def auto_name(self, view: dict[str, Any]) -> str:
        """Run name from the model and the first stage's data mix."""
        first = self.views[self.plan.pipeline.stages[0]]
        names = [
            self.dataset_name(entry, "data.datasets") for entry in first["data"]["datasets"] if entry["weight"] > 0
        ]
        more = f"-and-{len(names) - 2}-more" if len(names) > 2 else ""
        return f"{self._model_label(view['model'])}-{'-'.join(names[:2])}{more}"[:90].rstrip("-._")


class _InRunDirectory(Stage):
    """An export: `<run directory>/model`, one for each run whatever its options."""

    @cached_property
    def name(self) -> str:
        """A fixed name, which people and scripts rely on."""
        return "model"

    @property
    def wildcard(self) -> str:
        """The run directory."""
        return self.folder


def _new_tokens(chat_template: str) -> dict[str, str | list[str]]:
    """Control tokens of a tokenizer that is trained for a template: by name, and the others."""
    _require(
        chat_template != registry.OWN_TEMPLATE,
        "data.chat_template",
        f"found {chat_template!r}, but a tokenizer that model.from_scratch trains has no template of its own; name one",
    )
    tokens = registry.template_tokens(registry.chat_template_text(chat_template))
    if tokens is None:  # a file of the user's that declares none: those of ChatML
        tokens = registry.template_tokens(registry.chat_template_text("chatml"))
        assert tokens is not None
    used = {*tokens.needed, *tokens.named.values()}
    pad = next(token for token in ("<|endoftext|>", "<|pad|>") if token not in used)
    return {"pad_token": pad, **tokens.named, "others": [t for t in tokens.needed if t not in tokens.named.values()]}


def _model_stage(kind: str, label: str, config: dict[str, Any], runtime: dict[str, Any]) -> Stage:
    return Stage(kind, "models", label, config, runtime=runtime, separator="@")


def _amount(entry: dict[str, Any], key: str) -> dict[str, Any]:
    """How much of a dataset is used: exactly one of `weight`, `rows` and `tokens`."""
    given = {kind: entry[kind] for kind in ("rows", "tokens") if entry[kind] is not None}
    if entry["weight"] != 1.0 or not given:
        given["weight"] = entry["weight"]
    found = " and ".join(f"{kind}={value:g}" for kind, value in given.items())
    _require(len(given) == 1, f"{key}.{next(iter(given))}", f"found {found}; give one of weight, rows and tokens")
    ((kind, value),) = given.items()
    lowest = 0 if kind == "weight" else 1
    _require(lowest <= value < float("inf"), f"{key}.{kind}", f"found {value}, expected {lowest} or more")
    return given


def transform_call(transform: Any, key: str) -> tuple[str, dict[str, Any]]:
    """`alpaca` or `{name: alpaca, output: response}` -> name and arguments."""
    if isinstance(transform, str):
        return transform, {}
    if isinstance(transform, dict) and isinstance(transform.get("name"), str):
        return transform["name"], {key: value for key, value in transform.items() if key != "name"}
    raise ConfigError(key, f"found {transform!r}, expected a name or {{name: ..., argument: value}}")
