"""Training methods: the folder is the registry.

A method is one module (or package) here. On top, without importing torch:

- `Config`, a dataclass of its own keys (`init_from` and `max_seq_length` among them);
- `ROWS`, the shape of its rows, a file of `data/shapes`;
- `check(view)`, which raises `ConfigError` for values that cannot work;
- `training_arguments(view)`, what TRL's configuration is given besides the shared arguments;
- `CONFIG_CLASS` and `TRAINER_CLASS`, as `module:name`: TRL's configuration, and the trainer, TRL's below `data.collate.OnRows`, made with
  `(view, rows, model=..., args=..., ...)`;
- where they say something: `MODEL_CLASS`, the class of Transformers that it trains, if it is not `AutoModelForCausalLM`;
  `packs(config)`, whether several rows are packed into one; `SPEED_KEYS`, own keys that never make a stage stale;
  `micro_batch_decides(view)`, whether the rows that a device holds at a time change what is computed; `stored_reference(view)`, see
  methods/dpo.

A method is also the name of a stage: `view["method"]`, below which a view has the method's own keys, is not
always `view["stage"]`.
"""

import importlib
import pkgutil
from types import ModuleType
from typing import Any

CAUSAL_LM = "AutoModelForCausalLM"


def names() -> list[str]:
    """The methods on offer."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def micro_batch_decides(view: dict[str, Any]) -> bool:
    """Whether the rows that a device holds at a time change what a stage's method computes, and not only its speed."""
    return bool(getattr(load(view["method"]), "micro_batch_decides", lambda _: False)(view))


def packs(view: dict[str, Any]) -> bool:
    """Whether a stage's mix packs several rows into one."""
    method = view["method"]
    return bool(getattr(load(method), "packs", lambda _: False)(view[method]))


def stored_reference(view: dict[str, Any]) -> dict[str, Any] | None:
    """What decides a stage's stored log-probabilities of a reference besides model, pairs and number format; None = there are none."""
    found: dict[str, Any] | None = getattr(load(view["method"]), "stored_reference", lambda _: None)(view)
    return found


def config_class(method: str) -> Any:
    """TRL's class for the arguments of a method."""
    return pkgutil.resolve_name(load(method).CONFIG_CLASS)


def trainer_class(method: str) -> Any:
    """The class of a method's trainer; imports torch and TRL."""
    return pkgutil.resolve_name(load(method).TRAINER_CLASS)


def model_class(method: str) -> str:
    """The class of Transformers that a method trains and exports."""
    return str(getattr(load(method), "MODEL_CLASS", CAUSAL_LM))


def answers(method: str) -> bool:
    """Whether a method's model writes answers; a reward model does not."""
    return model_class(method) == CAUSAL_LM


def load(name: str) -> ModuleType:
    """The module of one method."""
    return importlib.import_module(f"{__name__}.{name}")
