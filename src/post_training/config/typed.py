"""Layers of one section -> its values, typed by the schema. Light: OmegaConf only."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from post_training.config.schema import RENAMED
from post_training.config.trees import Tree, get
from post_training.core.errors import ConfigError, did_you_mean
from post_training.core.secrets import find_in

Layers = Sequence[tuple[str, Tree]]
"""Each layer's own keys, later wins, and before them what turns a key into the one that is blamed: `dpo.training.{}`."""
# OmegaConf is slow, and the runs of a sweep differ in few sections.
_merged: dict[tuple[type, str], Any] = {}
_plain: dict[tuple[type, str], Tree] = {}


def section(schema: type, layers: Layers) -> Any:
    """The section as OmegaConf has it, to be read only. Raises ConfigError for an unknown key or a wrong type."""
    given = [(shown, layer) for shown, layer in layers if layer]
    key = (schema, repr(given))
    if key not in _merged:
        if given:
            shown, layer = given[-1]
            _merged[key] = _merge(section(schema, given[:-1]), layer, shown)
        else:
            _merged[key] = OmegaConf.structured(schema)
    return _merged[key]


def values(schema: type, layers: Layers) -> Tree:
    """The section in plain containers, to be read only: equal layers give the same object."""
    key = (schema, repr(layers))
    if key not in _plain:
        for shown, layer in layers:
            refuse_secrets(layer, shown)
        _plain[key] = resolved(section(schema, layers))
    return _plain[key]


def refuse_secrets(tree: Tree, shown: str = "{}") -> None:
    """Raise ConfigError for a value that is a secret: what a job is told is written down."""
    if found := find_in(tree):
        key, kind = found
        problem = f"holds {kind}; secrets come from the environment only, such as HF_TOKEN and WANDB_API_KEY"
        raise ConfigError(shown.format(key), problem)


def resolved(typed: Any) -> Tree:
    """Plain containers with every `${...}` looked up."""
    try:
        return {str(key): value for key, value in OmegaConf.to_container(typed, resolve=True).items()}  # type: ignore[union-attr]
    except OmegaConfBaseException as error:
        raise ConfigError(str(error.full_key), f"cannot be resolved: {_first_line(error)}") from None


def _merge(typed: Any, layer: Tree, shown: str) -> Any:
    """OmegaConf's typed merge with its errors in one line."""
    try:
        return OmegaConf.merge(typed, OmegaConf.create(layer))
    except OmegaConfBaseException as error:
        key = str(error.full_key or error.key)
        found = get(layer, key.split("."))
        if isinstance(error, ConfigKeyError | ConfigAttributeError):
            offered = [f.name for f in fields(error.object_type)] if is_dataclass(error.object_type) else []
            name = key.rpartition(".")[2]
            problem = f"unknown key. {did_you_mean(name, offered)}"
            if RENAMED.get(name) in offered:
                problem = f"is called {shown.format(key.removesuffix(name) + RENAMED[name])} now; rename it"
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
