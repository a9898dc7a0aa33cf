"""All layers -> the flat view of one stage, typed by the schema."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from post_training import methods
from post_training.config.hints import unknown_key
from post_training.config.schema import GLOBAL, SHARED, GlobalSections, SharedSections
from post_training.config.trees import Tree, check_finite, copied, get
from post_training.config.yaml_file import load_file
from post_training.core.errors import ConfigError, did_you_mean, written_as_list
from post_training.core.secrets import find_in

PROFILES = Path(__file__).resolve().parents[3] / "profiles"
Layers = Sequence[tuple[str, Tree]]
"""Each layer's own keys, later wins, after a format of the key that errors name: `dpo.training.{}`."""
_SECTIONS: dict[str, Any] = {f.name: f.default_factory for f in fields(SharedSections)}
# OmegaConf is slow, and the runs of a sweep differ in few sections.
_merged: dict[tuple[type, str], Any] = {}
_plain: dict[tuple[type, str], Tree] = {}
# Parts of OmegaConf's messages about a wrong type, and what to say instead.
_LIST = "a list"
_EXPECTED = {
    "not a valid bool": "true or false",
    "is not a ListConfig": _LIST,
    "to Dict[": "a mapping",
    "is not a subclass": "a mapping",
    "'ListConfig' to string": "text",
    "'DictConfig' to string": "text",
    "Union[int, str]": "a number or auto",
    "Incompatible value 'None'": "a value; leave it out for the default",
    "is not Optional": "a value; leave it out for the default",
}
_UNITS = {"%": 0.01, "k": 1e3, "m": 1e6, "b": 1e9}
_COUNTED = r"(?:step|epoch|token|row|sample|example|sequence|pair|gpu|node|core|day|second)s?"
# The key of a section that is meant when the section is given as one value: `deepspeed: zero3`.
_MEANT = {
    "model": "name_or_path", "deepspeed": "config_path", "slurm": "cluster", "paths": "output_base", "debug": "enabled",
    "publish": "hub_model_id",
}  # fmt: skip


def stage_view(stage: str, method: str, *layers: Tree) -> Tree:
    """Merge the layers for one stage into a view of plain values; in each, the stage's own section wins.

    Raises ConfigError for an unknown key, a wrong type, a secret, and a reference that cannot be resolved.
    """
    parts: dict[str, tuple[Any, Layers]] = {}
    for name in SHARED:
        cluster = [("slurm.{} (of slurm.cluster)", _cluster(stage, *layers))] if name == "slurm" else []
        parts[name] = _SECTIONS[name], [*cluster, *_layers_of(name, stage, layers)]
    own = {f.name for f in fields(methods.load(method).Config)}
    sections = [{k: v for k, v in layer.get(stage, {}).items() if k in own} for layer in layers]
    parts[method] = (methods.load(method).Config, [(f"{stage}.{{}}", part) for part in sections])
    top = (GlobalSections, [("{}", {k: v for k, v in layer.items() if k in GLOBAL}) for layer in layers])
    if "${" in repr((top, parts)):
        view = _interpolated(stage, method, top, parts)
    else:
        view = {**_values(*top), **{name: _values(*part) for name, part in parts.items()}}
    # The cluster's keys are in the view now: a job must not depend on a file that may change before it starts.
    # A copy: equal sections of two views are one object, and a change of one would reach the other.
    return copied({**view, "slurm": {**view["slurm"], "cluster": None}, "method": method, "stage": stage})


def section(schema: type, layers: Layers) -> Any:
    """One section as OmegaConf has it, read-only. Raises ConfigError for an unknown key or a wrong type."""
    given = [(shown, layer) for shown, layer in layers if layer]
    key = (schema, repr(given))
    if key not in _merged:
        if given:
            _merged[key] = _merge(section(schema, given[:-1]), given[-1][1], given[-1][0])
        else:
            _merged[key] = OmegaConf.structured(schema)
    return _merged[key]


def _values(schema: type, layers: Layers) -> Tree:
    """One section in plain containers, read-only: equal layers give the same object."""
    key = (schema, repr(layers))
    if key not in _plain:
        for shown, layer in layers:
            _refuse_secrets(layer, shown)
        values = _resolved(section(schema, layers))
        check_finite(values, layers[0][0] if layers else "{}")
        _plain[key] = values
    return _plain[key]


def _layers_of(name: str, stage: str, layers: tuple[Tree, ...]) -> list[tuple[str, Tree]]:
    """A shared section's own layers: each layer's shared keys, then the stage's."""
    found = []
    for layer in layers:
        for path in (name, f"{stage}.{name}"):
            part = get(layer, path.split("."), {})
            if not isinstance(part, dict):
                raise ConfigError(path, no_mapping(name, part))
            found.append((f"{path}.{{}}", part))
    return found


def _interpolated(stage: str, method: str, top: tuple[type, Layers], parts: Mapping[str, tuple[Any, Layers]]) -> Tree:
    """The view where a value refers to another (`${training.seed}`), perhaps of another section."""
    sections = {name: section(*part) for name, part in parts.items()}
    plain = dict(OmegaConf.to_container(section(*top)))  # type: ignore[arg-type]
    view = _resolved(OmegaConf.create({**plain, **sections, stage: sections[method]}))
    _refuse_secrets(view)  # `${oc.env:HF_TOKEN}` too
    check_finite(view)
    return {name: value for name, value in view.items() if name in (*GLOBAL, *parts)}


def _cluster(stage: str, *layers: Tree) -> Tree:
    """The `slurm` keys of `slurm.cluster`, from `profiles/<name>/slurm.yaml` or a file."""
    paths = [["slurm", "cluster"], [stage, "slurm", "cluster"]]
    named = [found for layer in layers for path in paths if (found := get(layer, path)) is not None]
    if not named:
        return {}
    name, folders = str(named[-1]), (Path("profiles"), PROFILES)
    file = next((path for path in (Path(name), *(f / name / "slurm.yaml" for f in folders)) if path.is_file()), None)
    if file is None:
        offered = did_you_mean(name, [path.parent.name for folder in folders for path in folder.glob("*/slurm.yaml")])
        raise ConfigError("slurm.cluster", f"found {name!r}, expected a YAML file or a folder of profiles. {offered}")
    tree = load_file(file)
    if set(tree) != {"slurm"} or not isinstance(tree["slurm"], dict):
        found = ", ".join(tree) or "nothing"
        raise ConfigError("slurm.cluster", f"{file}: expected the one section slurm, found {found}")
    return tree["slurm"]


def _refuse_secrets(tree: Tree, shown: str = "{}") -> None:
    """Raise ConfigError for a value that is a secret: a job's configuration is written to files."""
    if found := find_in(tree):
        key, kind = found
        problem = f"holds {kind}; secrets come from the environment only, such as HF_TOKEN and WANDB_API_KEY"
        raise ConfigError(shown.format(key), problem)


def _resolved(typed: Any) -> Tree:
    """Plain containers with every `${...}` looked up."""
    try:
        return {str(key): value for key, value in OmegaConf.to_container(typed, resolve=True).items()}  # type: ignore[union-attr]
    except OmegaConfBaseException as error:
        raise ConfigError(str(error.full_key), _unresolved(_first_line(error))) from None
    except RecursionError:
        raise ConfigError("${...}", "values refer to each other in a circle; write one of them out") from None


def _unresolved(said: str) -> str:
    """Why a `${...}` has no value, and what to do."""
    if found := re.search(r"Environment variable '(.*?)' not found", said):
        return f"the environment variable {found[1]} is not set; export it, or write ${{oc.env:{found[1]},default}}"
    if found := re.search(r"Interpolation key '([A-Z][A-Z0-9_]*)' not found", said):
        return f"the key {found[1]} is not there; an environment variable is ${{oc.env:{found[1]}}}"
    if "Recursive interpolation" in said:
        return "refers to itself in a circle of ${...}; write one of the values out"
    if "Unsupported interpolation type" in said:
        return f"cannot be resolved: {said}; write ${{section.key}} or ${{oc.env:NAME}}"
    return f"cannot be resolved: {said}; write ${{section.key}} with a key that is there, such as ${{training.seed}}"


def no_mapping(key: str, found: Any) -> str:
    """What to say of a section that is no mapping."""
    if found is None:
        return "is empty; give its keys below it, indented, or leave it out"
    if isinstance(found, str) and (written := re.match(r"([a-z_]\w*):(?=\S)", found)):
        return f"found {found!r}, expected a mapping of keys; a space follows the colon: {written[1]}: ..."
    if isinstance(found, str) and (written := re.fullmatch(r"([a-z_]\w*)(?: +|=)(\S+)", found)):
        return f"found {found!r}, expected a mapping of keys; write {written[1]}: {written[2]}"
    if isinstance(found, list):
        return f"found {found!r}, expected a mapping of keys; a dash begins a list: leave it out"
    name = key.rpartition(".")[2]
    fits = isinstance(found, bool if name == "debug" else str)
    such_as = f", such as {{{_MEANT[name]}: {str(found).strip()}}}" if name in _MEANT and fits else ""
    return f"found {found!r}, expected a mapping of keys{such_as}"


def _merge(typed: Any, layer: Tree, shown: str) -> Any:
    """OmegaConf's typed merge with its errors in one line."""
    try:
        return OmegaConf.merge(typed, OmegaConf.create(layer))
    except TypeError:
        key = _no_container(OmegaConf.get_type(typed), layer)
        problem = f"found {get(layer, key.split('.'))!r}, expected a mapping"
        raise ConfigError(shown.format(key), problem) from None
    except OmegaConfBaseException as error:
        key = str(error.full_key or error.key or _no_container(OmegaConf.get_type(typed), layer))
        if isinstance(error, ConfigKeyError | ConfigAttributeError):
            offered = [f.name for f in fields(error.object_type)] if is_dataclass(error.object_type) else []
            name = key.rpartition(".")[2]
            problem = unknown_key(name, offered, shown.format(key))
        else:
            said = _first_line(error)
            kind = said.rpartition(" to ")[2].lower() if "could not be converted to" in said else said
            expected = next((words for part, words in _EXPECTED.items() if part in said), kind)
            found = get(layer, key.split("."))
            if expected == _LIST:
                expected = f"a list, such as {written_as_list(found)}"
            problem = f"found {found!r}, expected {expected}{_as_number(found, expected, key)}"
        raise ConfigError(shown.format(key), problem) from None


def _no_container(schema: Any, layer: Tree) -> str:
    """The first key below which the schema has keys and the layer has none, which OmegaConf does not name."""
    hints = get_type_hints(schema)
    for key, value in layer.items():
        kinds = [hints[key], *get_args(hints[key])] if key in hints else []
        below = next((kind for kind in kinds if is_dataclass(kind)), None)
        if not isinstance(value, dict) and value is not None and (below or get_origin(hints.get(key)) is dict):
            return key
        if below and isinstance(value, dict) and (found := _no_container(below, value)):
            return f"{key}.{found}"
    return ""


def _as_number(found: Any, expected: str, key: str) -> str:
    """`; write 2000`, of `2k`, `2,000`, `2000 steps` and `2e3` where a number is expected."""
    text = str(found).lower()
    number = re.fullmatch(rf"(\d+(?:,\d{{3}})*(?:\.\d+)?(?:e[+-]?\d+)?) ?([kmb%x]|{_COUNTED})?", text)
    if not number or expected not in ("integer", "float") or isinstance(found, bool):
        return ""
    value = float(number[1].replace(",", "")) * _UNITS.get(number[2] or "", 1)
    if expected == "integer" and not value.is_integer():
        return ""
    binary = f" or {int(value) * 1024 // 1000}" if number[2] == "k" and key.endswith(("seq_length", "tokens")) else ""
    return f"; write {int(value) if value.is_integer() else f'{value:g}'}{binary}"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
