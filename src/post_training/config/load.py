"""Layers of configuration -> one checked, flat view a stage.

Precedence, later wins: schema, file shared, file stage, command line shared, command line stage.
Everything that can be wrong is a `ConfigError` that names the key.  Light: OmegaConf only.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from post_training import methods
from post_training.config.schema import GLOBAL, SHARED, DatasetConfig, GlobalSections, SharedSections
from post_training.errors import ConfigError, UserError, did_you_mean

Tree = dict[str, Any]
PROFILES = Path(__file__).resolve().parents[3] / "profiles"
_INDEX = re.compile(r"^(?P<list>[\w.]+?)\[(?P<index>\d+)\](?P<rest>.*)$")


@dataclass
class Pipeline:
    """A checked configuration: the stages in order and the flat view of each."""

    views: dict[str, Tree]
    """Stage name -> every section, resolved for that stage; its own keys stand below its method's name, which `method`
    gives, as `stage` gives the stage's own."""
    stages: list[str] = field(default_factory=list)
    """From first to last."""

    @property
    def last(self) -> Tree:
        """The view of the last stage."""
        return self.views[self.stages[-1]]

    def frozen(self, stage: str) -> Tree:
        """A complete configuration that makes the same pipeline up to `stage`, defaults written out."""
        upto = self.stages[: self.stages.index(stage) + 1]
        view = self.views[stage]
        tree = {key: view[key] for key in GLOBAL} | {"method": stage}
        for name in upto:
            view, method = self.views[name], self.views[name]["method"]
            named = {} if name == method else {"method": method}
            tree[name] = {**named, **view[method], **{section: view[section] for section in SHARED}}
        return tree


def load_file(path: str | Path) -> Tree:
    """Read one YAML file into plain containers."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config error: {path}: cannot be read ({error}); give the path of a YAML file") from None
    try:
        loaded = OmegaConf.create(text) if text.strip() else OmegaConf.create({})
        tree = OmegaConf.to_container(loaded, resolve=False)
    except Exception as error:  # YAML and OmegaConf raise many kinds; all are the file's fault
        raise UserError(f"config error: {path}: not a YAML mapping: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"config error: {path}: expected a mapping of sections, found {type(tree).__name__}")
    return {str(key): value for key, value in tree.items()}


def resolve(file: Mapping[str, Any], command_line: Mapping[str, Any] | None = None) -> Pipeline:
    """Check and merge the layers.

    Args:
        file: the configuration file(s), merged.
        command_line: nested overrides (`--config training={...}`), with dotted ones under `set`: a
            string of `key=value` words, or a list of them for values with spaces.
    """
    base: Tree = _plain(file)
    override: Tree = _plain(command_line or {})
    # Snakemake has merged the command line into `file` already; the reserved key is no section.
    dotted = override.pop("set", base.get("set", []))
    base.pop("set", None)
    _merge_into(override, _apply_dotted(dotted, base))
    stages = _stage_methods(base, override)
    for layer in (base, override):
        _check_layer(layer, stages)
    chosen = override.get("method", base.get("method", "sft"))
    if chosen not in stages:
        raise ConfigError("method", f"found {chosen!r}. {did_you_mean(str(chosen), stages)}")
    given = [name for name in stages if name in base or name in override]
    views: dict[str, Tree] = {}
    stage = chosen
    while stage != "base":
        if stage in views:
            child = next(iter(views))
            raise ConfigError(f"{child}.init_from", f"{stage} cannot start from itself; use base or another stage")
        if stage not in stages:
            child = next(iter(views))
            offered = did_you_mean(stage, ["auto", "base", *stages])
            raise ConfigError(f"{child}.init_from", f"found {stage!r}, expected base or a stage. {offered}")
        view = _stage_view(stage, stages[stage], base, override)
        own = view[stages[stage]]
        if own["init_from"] == "auto":
            own["init_from"] = _automatic_parent(stage, [name for name in given if stages[name] == "sft"])
        views = {stage: view, **views}
        stage = own["init_from"]
    return Pipeline(views=views, stages=list(views))


def _stage_methods(*layers: Tree) -> dict[str, str]:
    """Stage -> its method: each method is a stage of that name, and so is a section that says `method: <name>`."""
    found = {name: name for name in methods.names()}
    for layer in layers:
        for name, section in layer.items():
            if name in (*GLOBAL, *SHARED) or not isinstance(section, dict) or "method" not in section:
                continue
            method = section["method"]
            if method not in methods.names():
                offered = did_you_mean(str(method), methods.names())
                raise ConfigError(f"{name}.method", f"found {method!r}. {offered}")
            if name in methods.names() and name != method:
                raise ConfigError(
                    f"{name}.method", f"found {method}, but {name} is a method itself; name the stage otherwise"
                )
            if not re.fullmatch(r"[a-z][a-z0-9_]{0,30}", name) or name in ("auto", "base", "set"):
                raise ConfigError(
                    name, "cannot name a stage; use small letters, digits and _, and not auto, base or set"
                )
            found[name] = method
    return found


def _automatic_parent(stage: str, candidates: list[str]) -> str:
    """`init_from: auto`: the one SFT stage of the configuration, or the base model where there is none."""
    others = [name for name in candidates if name != stage]
    if len(others) > 1:
        raise ConfigError(f"{stage}.init_from", f"auto could be {' or '.join(others)}; name the one to start from")
    return others[0] if others else "base"


def parse_dotted(words: Iterable[str]) -> list[tuple[str, Any]]:
    """`["training.max_steps=3"]` -> `[("training.max_steps", 3)]`, typed as YAML types it."""
    pairs = []
    for word in words:
        key, separator, value = str(word).partition("=")
        if not separator or not re.fullmatch(r"[A-Za-z_][\w.\[\]]*", key):
            raise ConfigError(
                "set", f"expected key=value, found {word!r}; for values with spaces use a list: set='[\"key=a b\"]'"
            )
        if "$" in value:
            # Under Slurm the submitting shell would expand it and the job would run with another value.
            raise ConfigError(key, f"'$' in {value!r} would be expanded by the submitting shell; set it in the file")
        try:
            pairs.append((key, OmegaConf.to_container(OmegaConf.from_dotlist([f"v={value}"]))["v"]))  # type: ignore[index,call-overload]
        except Exception as error:
            raise ConfigError(key, f"cannot read the value {value!r}: {error}") from None
    return pairs


def _apply_dotted(dotted: Any, file: Tree) -> Tree:
    """Edit list entries of the file layer in place; return the other overrides as a tree.

    An index edits the list where it stands: `data.datasets[0].weight` the shared list, which a stage
    with a list of its own does not use; `dpo.data.datasets[0].weight` DPO's.
    """
    words = dotted.split() if isinstance(dotted, str) else list(dotted or [])
    override: Tree = {}
    for key, value in parse_dotted(words):
        match = _INDEX.match(key)
        if not match:
            _put(override, key, value)
            continue
        path, index, rest = match["list"].split("."), int(match["index"]), match["rest"].lstrip(".")
        entries = _get(file, path)
        if entries is None and path[0] not in SHARED:
            # The stage shares the list: it gets a copy of its own before that is edited.
            entries = _plain(_get(file, path[1:]))
            if entries is not None:
                _put(file, match["list"], entries)
        if not isinstance(entries, list) or index >= len(entries):
            size = len(entries) if isinstance(entries, list) else 0
            raise ConfigError(key, f"the list {match['list']} has {size} entries, so index {index} does not exist")
        if not rest:
            entries[index] = value
        elif isinstance(entries[index], dict):
            _put(entries[index], rest, value)
        else:
            raise ConfigError(key, f"entry {index} is {entries[index]!r}, not a mapping")
    return override


def _check_layer(layer: Tree, stages: dict[str, str]) -> None:
    """Unknown sections, and list entries one by one: OmegaConf's own error for those has no path."""
    offered = [*GLOBAL, *SHARED, *stages]
    for key, value in layer.items():
        if key not in offered:
            raise ConfigError(key, f"unknown key. {did_you_mean(key, offered)}")
        if key not in ("method", "run_name", "offline") and not isinstance(value, dict):
            raise ConfigError(key, f"found {value!r}, expected a mapping of keys")
        if key in stages:
            own = ["method", *(f.name for f in fields(methods.load(stages[key]).Config))]
            unknown = [name for name in value if name not in own and name not in SHARED]
            if unknown:
                raise ConfigError(f"{key}.{unknown[0]}", f"unknown key. {did_you_mean(unknown[0], [*own, *SHARED])}")
    for prefix in ("", *(f"{name}." for name in stages)):
        for part in ("from_scratch", "lora"):
            given = _get(layer, f"{prefix}model.{part}".split("."))
            if given is not None and not isinstance(given, dict):
                raise ConfigError(f"{prefix}model.{part}", f"found {given!r}, expected a mapping, or null for off")
        for section in ("data", "evaluation"):
            path = f"{prefix}{section}.datasets"
            entries = _get(layer, path.split("."))
            if entries is not None and not isinstance(entries, list):
                raise ConfigError(path, f"found {entries!r}, expected a list of datasets")
            for index, entry in enumerate(entries or []):
                if not isinstance(entry, dict):
                    raise ConfigError(
                        f"{path}[{index}]", f"found {entry!r}, expected a mapping with path and transform"
                    )
                _merge(OmegaConf.structured(DatasetConfig), entry, shown=f"{path}[{index}]." + "{}")


def _stage_view(stage: str, method: str, file: Tree, command_line: Tree) -> Tree:
    """Merge the layers for one stage into a view of plain values."""
    config_class = methods.load(method).Config
    own = {f.name for f in fields(config_class)}
    # One class a stage: OmegaConf has no tagged unions.
    view_class = make_dataclass(
        "View",
        [(stage, config_class, field(default_factory=config_class))],
        bases=(GlobalSections, SharedSections),
    )
    typed = OmegaConf.structured(view_class)
    typed = _merge(typed, {"slurm": _cluster(stage, file, command_line)}, shown="{} (of slurm.cluster)")
    for layer in (file, command_line):
        typed = _merge(typed, {k: v for k, v in layer.items() if k in GLOBAL or k in SHARED}, shown="{}")
        section = layer.get(stage, {})
        typed = _merge(typed, {stage: {k: v for k, v in section.items() if k in own}}, shown="{}")
        typed = _merge(typed, {k: v for k, v in section.items() if k in SHARED}, shown=f"{stage}." + "{}")
    try:
        view = dict(OmegaConf.to_container(typed, resolve=True))  # type: ignore[arg-type]
        # Its keys are in the view now: what a job is told must not depend on a file that may change before it starts.
        view["slurm"]["cluster"] = None
        return {**{k: v for k, v in view.items() if k != stage}, method: view[stage], "method": method, "stage": stage}
    except OmegaConfBaseException as error:
        raise ConfigError(str(error.full_key), f"cannot be resolved: {_first_line(error)}") from None


def _cluster(stage: str, *layers: Tree) -> Tree:
    """The `slurm` keys of the cluster that is named, from `profiles/<name>/slurm.yaml` or a file."""
    paths = ["slurm.cluster".split("."), f"{stage}.slurm.cluster".split(".")]
    named = [found for layer in layers for path in paths if (found := _get(layer, path)) is not None]
    if not named:
        return {}
    name = str(named[-1])
    places = [Path(name), *(folder / name / "slurm.yaml" for folder in (Path("profiles"), PROFILES))]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        offered = sorted(
            path.parent.name for folder in (Path("profiles"), PROFILES) for path in folder.glob("*/slurm.yaml")
        )
        raise ConfigError(
            "slurm.cluster",
            f"found {name!r}, expected a YAML file or a folder of profiles. {did_you_mean(name, offered)}",
        )
    tree = load_file(file)
    if set(tree) != {"slurm"} or not isinstance(tree["slurm"], dict):
        raise ConfigError(
            "slurm.cluster", f"{file}: expected the one section slurm, found {', '.join(tree) or 'nothing'}"
        )
    return tree["slurm"]


def _merge(typed: Any, layer: Tree, shown: str) -> Any:
    """OmegaConf's typed merge with its errors in one line; `shown` formats the key that is blamed."""
    try:
        return OmegaConf.merge(typed, OmegaConf.create(layer))
    except OmegaConfBaseException as error:
        key = str(error.full_key or error.key)
        found = _get(layer, key.split("."))
        if isinstance(error, ConfigKeyError | ConfigAttributeError):
            offered = [f.name for f in fields(error.object_type)] if is_dataclass(error.object_type) else []
            problem = f"unknown key. {did_you_mean(key.rpartition('.')[2], offered)}"
        else:
            problem = f"found {found!r}, expected {_expected(_first_line(error))}"
        raise ConfigError(shown.format(key), problem) from None


def _expected(omegaconf_says: str) -> str:
    """OmegaConf's words for a wrong type in a user's words."""
    for said, expected in (
        ("not a valid bool", "true or false"),
        ("is not a ListConfig", "a list, such as [value]"),
        ("to Dict[", "a mapping"),
        ("is not a subclass", "a mapping"),
    ):
        if said in omegaconf_says:
            return expected
    return (
        omegaconf_says.rpartition(" to ")[2].lower()
        if "could not be converted to" in omegaconf_says
        else omegaconf_says
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _plain(tree: Any) -> Any:
    """A deep copy in plain containers; `'null'` from Snakemake's string-typed `--config` becomes None."""
    if isinstance(tree, Mapping):
        return {str(key): _plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_plain(value) for value in tree]
    return None if tree == "null" else tree


def _merge_into(tree: Tree, other: Tree) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge_into(tree[key], value)
        else:
            tree[key] = value


def _get(tree: Any, path: list[str]) -> Any:
    for part in path:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _put(tree: Tree, dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for part in parents:
        child = tree.get(part)
        if child is None:
            child = tree[part] = {}
        elif not isinstance(child, dict):
            raise ConfigError(dotted, f"{part} is {child!r}, not a mapping")
        tree = child
    tree[last] = value
