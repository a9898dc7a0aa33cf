"""All layers -> the flat view of one stage. Light: OmegaConf only."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from post_training import methods
from post_training.config.schema import GLOBAL, SHARED, GlobalSections, SharedSections
from post_training.config.trees import Tree, copied, get, load_file
from post_training.config.typed import Layers, refuse_secrets, resolved, section, values
from post_training.core.errors import ConfigError, did_you_mean

PROFILES = Path(__file__).resolve().parents[3] / "profiles"
_SECTIONS: dict[str, Any] = {f.name: f.default_factory for f in fields(SharedSections)}


def stage_view(stage: str, method: str, *layers: Tree) -> Tree:
    """Merge the layers for one stage into a view of plain values; in each, the stage's own section wins."""
    parts = {name: (_SECTIONS[name], _layers_of(name, stage, layers)) for name in SHARED}
    parts["slurm"][1].insert(0, ("slurm.{} (of slurm.cluster)", _cluster(stage, *layers)))
    own = {f.name for f in fields(methods.load(method).Config)}
    sections = [{k: v for k, v in layer.get(stage, {}).items() if k in own} for layer in layers]
    parts[method] = (methods.load(method).Config, [(f"{stage}.{{}}", part) for part in sections])
    top = (GlobalSections, [("{}", {k: v for k, v in layer.items() if k in GLOBAL}) for layer in layers])
    if "${" in repr((top, parts)):
        view = _interpolated(stage, method, top, parts)
    else:
        view = {**values(*top), **{name: values(*part) for name, part in parts.items()}}
    # Its keys are in the view now: what a job is told must not depend on a file that may change before it starts.
    # A copy: equal sections of two views are one object, and a change of one would reach the other.
    return copied({**view, "slurm": {**view["slurm"], "cluster": None}, "method": method, "stage": stage})


def _layers_of(name: str, stage: str, layers: tuple[Tree, ...]) -> list[tuple[str, Tree]]:
    """A shared section's own layers: each layer's shared keys, then the stage's."""
    found = []
    for layer in layers:
        for path in (name, f"{stage}.{name}"):
            part = get(layer, path.split("."), {})
            if not isinstance(part, dict):
                raise ConfigError(path, f"found {part!r}, expected a mapping of keys")
            found.append((f"{path}.{{}}", part))
    return found


def _interpolated(stage: str, method: str, top: tuple[type, Layers], parts: Mapping[str, tuple[Any, Layers]]) -> Tree:
    """The view where a value refers to another (`${training.seed}`), perhaps of another section."""
    whole = {name: section(*part) for name, part in parts.items()}
    plain = dict(OmegaConf.to_container(section(*top)))  # type: ignore[arg-type]
    tree = OmegaConf.create({**plain, **whole, stage: whole[method]})
    view = resolved(tree)
    refuse_secrets(view)  # `${oc.env:HF_TOKEN}` too
    return {name: value for name, value in view.items() if name in (*GLOBAL, *parts)}


def _cluster(stage: str, *layers: Tree) -> Tree:
    """The `slurm` keys of the cluster that is named, from `profiles/<name>/slurm.yaml` or a file."""
    paths = ["slurm.cluster".split("."), f"{stage}.slurm.cluster".split(".")]
    named = [found for layer in layers for path in paths if (found := get(layer, path)) is not None]
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
