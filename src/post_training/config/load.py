"""Layers of configuration -> one checked, flat view a stage.

Precedence, later wins: schema, file shared, file stage, run shared, run stage, command line shared, command line stage.
Every mistake is a `ConfigError` that names the key.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from post_training import methods
from post_training.config.hints import unknown_key
from post_training.config.runs import KEYS, Run, choose, expand
from post_training.config.schema import GLOBAL, SHARED
from post_training.config.schema.data import DatasetConfig
from post_training.config.trees import INDEX, Tree, apply_dotted, get, merge_into, parse_dotted, plain
from post_training.config.views import no_mapping, section, stage_view
from post_training.core.errors import ConfigError, did_you_mean, one_of

__all__ = ["Pipeline", "resolve", "resolve_runs"]


@dataclass
class Pipeline:
    """A checked configuration: the stages in order and the flat view of each."""

    views: dict[str, Tree]
    """Stage name -> every section, resolved for that stage. Its own keys are below the name of its method, which is under
    `method`; `stage` is its own name."""
    stages: list[str] = field(default_factory=list)
    """From first to last."""
    run: Run = field(default_factory=Run)
    """Which of the configuration's runs it is."""

    @property
    def last(self) -> Tree:
        """The view of the last stage."""
        return self.views[self.stages[-1]]

    def value(self, dotted: str) -> Any:
        """The value of a key as the user writes it: `dpo.beta`, `dpo.training.seed`, `data.datasets[0].weight`."""
        stage, _, rest = dotted.partition(".")
        view, path = (self.views[stage], rest) if stage in self.views else (self.last, dotted)
        if path.partition(".")[0] not in (*SHARED, *GLOBAL):
            path = f"{view['method']}.{path}"
        found: Any = view
        try:
            for part in re.findall(r"[^.\[\]]+", path):
                found = found[int(part)] if isinstance(found, list) else found[part]
        except (KeyError, IndexError, TypeError, ValueError):
            return self.run.values.get(dotted)
        return found

    def frozen(self, stage: str) -> Tree:
        """A complete configuration that makes the same pipeline up to `stage`, defaults written out."""
        last = self.views[stage]
        tree = {key: last[key] for key in GLOBAL if key not in (*KEYS, "publish", "recorded_files")} | {"method": stage}
        for name in self.stages[: self.stages.index(stage) + 1]:
            view, method = self.views[name], self.views[name]["method"]
            named = {} if name == method else {"method": method}
            tree[name] = {**named, **view[method], **{key: view[key] for key in SHARED}}
        return tree


def resolve(file: Mapping[str, Any], command_line: Mapping[str, Any] | None = None) -> Pipeline:
    """Check and merge the layers of one run; `run` names it where there are several.

    Args:
        file: the configuration file(s), merged.
        command_line: nested overrides (`--config training={...}`), with dotted ones under `set`: a
            string of `key=value` words, or a list of them for values with spaces.

    Raises ConfigError for a key or value that cannot work, and where `run` names none of several runs.
    """
    base, override, runs = _layers(file, command_line)
    if len(runs) > 1:
        more = f", and {len(runs) - 12:,} more" if len(runs) > 12 else ""
        offered = ", ".join(run.name for run in runs[:12])
        raise ConfigError("run", f"this is about one run of {len(runs)}; name it. On offer: {offered}{more}")
    return _resolve(base, runs[0], override)


def resolve_runs(file: Mapping[str, Any], command_line: Mapping[str, Any] | None = None) -> list[Pipeline]:
    """Every run of `runs` and `sweep`, or the one pipeline of a configuration without them; arguments as above."""
    base, override, runs = _layers(file, command_line)
    return [_resolve(base, run, override) for run in runs]


def _layers(file: Mapping[str, Any], command_line: Mapping[str, Any] | None) -> tuple[Tree, Tree, list[Run]]:
    base: Tree = plain(file)
    override: Tree = plain(command_line or {})
    # Snakemake has merged the command line into `file` already; the reserved key is no section.
    dotted = override.pop("set", base.get("set", []))
    base.pop("set", None)
    merge_into(override, apply_dotted(parse_dotted(dotted), base))
    given: Tree = {key: base.pop(key, None) for key in KEYS}
    merge_into(given, {key: override.pop(key) for key in KEYS if key in override})
    runs = expand(given["runs"], given["sweep"])
    for key in runs[0].written:
        if runs[0].written[key].startswith("sweep.") and get(override, key.split("."), override) is not override:
            raise ConfigError(f"sweep.{key}", "is given on the command line too, which would win; leave one out")
    return base, override, choose(runs, given["run"])


def _resolve(base: Tree, run: Run, override: Tree) -> Pipeline:
    with run.error_context():
        if any(INDEX.match(key) for key in run.values):
            base = plain(base)
        own = apply_dotted(run.values.items(), base)
        views = _views(base, own, override)
        return Pipeline(views, list(views), run)


def _views(*layers: Tree) -> dict[str, Tree]:
    """The stages from the first to the one that `method` names."""
    stages = _stage_methods(*layers)
    for layer in layers:
        _check_layer(layer, stages)
    chosen = next((layer["method"] for layer in reversed(layers) if "method" in layer), "sft")
    one_of(chosen, list(stages), "method")
    given = [name for name in stages if any(name in layer for layer in layers)]
    views: dict[str, Tree] = {}

    def visit(stage: str, key: str, after: tuple[str, ...]) -> None:
        """Resolve a stage, and before it those that it needs."""
        if stage in after:
            circle = " -> ".join((*after[after.index(stage) :], stage))
            raise ConfigError(key, f"{stage} cannot start from itself ({circle}); use base or another stage")
        if stage not in stages:
            elsewhere = "; a folder or a Hub model goes into model.name_or_path, with init_from: base" * ("/" in stage)
            offered = did_you_mean(stage, ["auto", "base", *stages])
            raise ConfigError(key, f"found {stage!r}, expected base or a stage{elsewhere}. {offered}")
        if stage in views:
            return
        view = stage_view(stage, stages[stage], *layers)
        parent = view[stages[stage]]["init_from"]
        if parent == "auto":
            parent = _automatic_parent(stage, [name for name in given if stages[name] == "sft"])
            view[stages[stage]] = {**view[stages[stage]], "init_from": parent}
        needed = [(f"{stage}.init_from", parent)] if parent != "base" else []
        needed += [(key, name) for key, name in referenced_models(view) if name in stages]
        for key_of_it, name in needed:
            visit(name, key_of_it, (*after, stage))
        views[stage] = view

    visit(chosen, "method", ())
    return views


def _stage_methods(*layers: Tree) -> dict[str, str]:
    """Stage -> its method: each method is a stage of that name, and so is a section that says `method: <name>`."""
    found = {name: name for name in methods.names()}
    for layer in layers:
        for name, own in layer.items():
            if name in (*GLOBAL, *SHARED) or not isinstance(own, dict) or "method" not in own:
                continue
            method, key = own["method"], f"{name}.method"
            one_of(method, methods.names(), key)
            if name in methods.names() and name != method:
                raise ConfigError(key, f"found {method}, but {name} is a method itself; name the stage otherwise")
            if not re.fullmatch(r"[a-z][a-z0-9_]{0,30}", name) or name in ("auto", "base", "set"):
                problem = "cannot name a stage; use small letters, digits and _, and not auto, base or set"
                raise ConfigError(name, problem)
            found[name] = method
    return found


def referenced_models(view: Tree) -> list[tuple[str, str]]:
    """(key, value) of what a stage names as models beside `init_from`: `base`, stages, ids or folders."""
    found = []
    for index, entry in enumerate(view["data"]["datasets"]):
        key = f"{view['stage']}.data.datasets[{index}]"
        if entry["generate"] is not None:
            found.append((f"{key}.generate.model", entry["generate"]["model"]))
        scores = [
            (place, one["model"])
            for place, one in enumerate(entry["score"])
            if isinstance(one, dict) and "model" in one
        ]
        found += [(f"{key}.score[{place}].model", model) for place, model in scores]
    reference = view[view["method"]].get("ref_model_name_or_path")
    return found + ([(f"{view['stage']}.ref_model_name_or_path", reference)] if reference is not None else [])


def _automatic_parent(stage: str, candidates: list[str]) -> str:
    """`init_from: auto`: the one SFT stage of the configuration, or the base model where there is none."""
    others = [name for name in candidates if name != stage]
    if len(others) > 1:
        raise ConfigError(f"{stage}.init_from", f"auto could be {' or '.join(others)}; name the one to start from")
    return others[0] if others else "base"


def _check_layer(layer: Tree, stages: dict[str, str]) -> None:
    """Raise ConfigError for unknown sections, and for list entries, whose errors have no path in OmegaConf."""
    offered = [*GLOBAL, *SHARED, *stages]
    for key, value in layer.items():
        first, dot, rest = key.partition(".")
        if dot and first in offered:
            nested = f"dots are for --config set=...; in a file write {first}: {{{rest}: ...}}"
            raise ConfigError(key, f"unknown key; {nested}")
        if key not in offered:
            raise ConfigError(key, unknown_key(key, offered, key))
        if key not in ("method", "run_name", "offline") and not isinstance(value, dict):
            raise ConfigError(key, no_mapping(key, value))
        if key in stages:
            own = ["method", *(f.name for f in fields(methods.load(stages[key]).Config))]
            unknown = [name for name in value if name not in own and name not in SHARED]
            if unknown:
                shown = f"{key}.{unknown[0]}"
                raise ConfigError(shown, unknown_key(unknown[0], [*own, *SHARED], shown))
    for prefix in ("", *(f"{name}." for name in stages)):
        for path in ("model.from_scratch", "model.lora", "model.quantization", "training.early_stopping"):
            given = get(layer, f"{prefix}{path}".split("."))
            if given is not None and not isinstance(given, dict):
                part = path.rpartition(".")[2]
                default = "" if part == "from_scratch" else f"; `{part}: {{}}` has the defaults"
                raise ConfigError(f"{prefix}{path}", f"found {given!r}, expected a mapping, or null for off{default}")
        for holder in ("data", "evaluation"):
            path = f"{prefix}{holder}.datasets"
            entries = get(layer, path.split("."))
            if entries is not None and not isinstance(entries, list):
                remedy = "; each begins with a dash: `- path: ...`"
                raise ConfigError(path, f"found {entries!r}, expected a list of datasets{remedy}")
            for index, entry in enumerate(entries or []):
                if not isinstance(entry, dict):
                    written = f", such as `- path: {entry}`" if isinstance(entry, str) else ""
                    problem = f"found {entry!r}, expected a mapping with path and transform{written}"
                    raise ConfigError(f"{path}[{index}]", problem)
                section(DatasetConfig, [(f"{path}[{index}].{{}}", entry)])
