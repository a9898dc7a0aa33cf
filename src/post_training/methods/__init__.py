"""Training methods: the folder is the registry.

A method is one module here with, light to import, on top:

- `Config`, a dataclass of its own keys (`init_from` and `max_seq_length` among them);
- `ROWS`, the row shape it trains on: `messages` or `preference`;
- `PACKING(config)`, whether several rows are packed into one;
- `check(view)`, which raises `ConfigError` for values that cannot work;

and, importing torch and TRL only when called, below:

- `training_arguments(view, ...)`, its TRL configuration class and arguments;
- `build_trainer(...)`, its TRL trainer on the mixed rows.
"""

import importlib
import pkgutil
from types import ModuleType


def names() -> list[str]:
    """The methods on offer."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """The module of one method."""
    return importlib.import_module(f"{__name__}.{name}")
