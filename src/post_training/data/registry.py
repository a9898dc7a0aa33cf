"""Transforms, rewards and chat templates by name, found by reading files, not by importing them.

A transform's (or reward's) identity is its source: the function and whatever else its module says at top level
(helpers, constants, imports), the modules beside it that it imports, but not the module's other transforms. Comments
and formatting do not count.
"""

import ast
import hashlib
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from post_training.core.errors import ConfigError, did_you_mean
from post_training.core.fingerprint import write_atomically
from post_training.core.paths import unreadable

PACKAGE = Path(__file__).parents[1]
TRANSFORMS = PACKAGE / "data" / "transforms"
REWARDS = PACKAGE / "rewards"
CHAT_TEMPLATES = PACKAGE / "data" / "chat_templates"
KEPT = "source"
"""Folder of a stage's directory with the module of a user as it was used."""
_FOR_THE_PLANNER = ("gives", "choices")
OWN_TEMPLATE = "tokenizer"
"""`data.chat_template` for the template that comes with the model."""


@dataclass(frozen=True)
class TransformSource:
    """Where a transform or a reward is defined."""

    name: str
    file: Path
    decorator: str = "register_transform"
    """Or `register_reward`."""

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the text that decides its results."""
        tree = _parsed(self.file)
        named = {node: found for node in tree.body if (found := _registered(node))}
        own = [_dump_function(node) for node, found in named.items() if found == (self.decorator, self.name)]
        shared = [ast.dump(node) for node in tree.body if node not in named and not _is_docstring(node)]
        shared += [ast.dump(_parsed(neighbour)) for neighbour in _neighbours(self.file, tree, {self.file})]
        return hashlib.sha256("\n".join([*own, *shared]).encode()).hexdigest()

    @property
    def files(self) -> dict[str, Path]:
        """Its module and the neighbouring modules that decide its results, by path relative to the module's folder, or to that of its package."""
        found = [self.file, *_neighbours(self.file, _parsed(self.file), {self.file})]
        roots = _roots(self.file)
        return {
            str(next(path.relative_to(root) for root in roots if path.is_relative_to(root))): path for path in found
        }

    @property
    def gives(self) -> tuple[str, ...]:
        """Shapes of the rows that it makes, as its decorator says; empty where it does not."""
        value = self._written_out("gives", ())
        return (value,) if isinstance(value, str) else tuple(value)

    @property
    def choices(self) -> dict[str, tuple[Any, ...]]:
        """The values that an argument may have, as its decorator says, of those that have but a few."""
        return dict(self._written_out("choices", {}))

    def _written_out(self, keyword: str, otherwise: Any) -> Any:
        """The value of a keyword of the decorator, which nothing has run."""
        given = self._keywords.get(keyword)
        try:
            return otherwise if given is None else ast.literal_eval(given)
        except ValueError:
            problem = f"{self.file}: line {given.lineno if given else 0}: {keyword} of {self.name!r} is a name or a call; write its value out"
            raise ConfigError("data.transform_modules", problem) from None

    @property
    def function(self) -> ast.FunctionDef:
        """Its definition: arguments, defaults, docstring."""
        return next(
            node
            for node in _parsed(self.file).body
            if isinstance(node, ast.FunctionDef) and _registered(node) == (self.decorator, self.name)
        )

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of its decorator, such as `place` of a reward."""
        return {name: value.value for name, value in self._keywords.items() if isinstance(value, ast.Constant)}

    @property
    def _keywords(self) -> dict[str, ast.expr]:
        calls = [found for found in self.function.decorator_list if isinstance(found, ast.Call)]
        return {str(keyword.arg): keyword.value for call in calls for keyword in call.keywords}

    def keep(self, directory: Path) -> list[dict[str, str]]:
        """Copy a user's own module, as it is used, to `source/`: no commit of this repository has it. Entries for the manifest."""
        if self.file.resolve().is_relative_to(PACKAGE):
            return []
        for name, path in self.files.items():
            write_atomically(directory / KEPT / name, path.read_text(encoding="utf-8"))
        return [{"path": f"{KEPT}/{name}"} for name in self.files]


def transform_names(modules: list[str]) -> dict[str, TransformSource]:
    """All transforms: the shipped ones and those of the user's modules."""
    return _names(TRANSFORMS, modules, "register_transform")


def reward_names(modules: list[str]) -> dict[str, TransformSource]:
    """All rewards: the shipped ones and those of the user's modules."""
    return _names(REWARDS, modules, "register_reward")


def _names(folder: Path, modules: list[str], decorator: str) -> dict[str, TransformSource]:
    files = [*sorted(folder.glob("[!_]*.py")), *map(_module_file, modules)]
    found = [(_registered(node), file) for file in files for node in _parsed(file).body]
    return {one[1]: TransformSource(one[1], file, decorator) for one, file in found if one and one[0] == decorator}


def find_transform(name: str, modules: list[str], key: str) -> TransformSource:
    """The transform of that name; `key` is the configuration key for the message."""
    known = transform_names(modules)
    if name not in known:
        raise ConfigError(
            key,
            f"no transform named {name!r}. {did_you_mean(name, known)} (or name your module in data.transform_modules)",
        )
    return known[name]


def chat_template_names() -> list[str]:
    """The shipped templates."""
    return sorted(path.stem for path in CHAT_TEMPLATES.glob("*.jinja"))


def chat_template_text(name: str) -> str:
    """The text of a shipped template or of a `.jinja` file given by path; `tokenizer` unchanged.

    `tokenizer` is resolved with the model's folder by `tokens.chat_template.resolve_template`. Raises ConfigError.
    """
    if name == OWN_TEMPLATE:
        return name
    own = name.endswith(".jinja")
    path = Path(name).expanduser() if own else CHAT_TEMPLATES / f"{name}.jinja"
    known = [*chat_template_names(), OWN_TEMPLATE]
    if not own and name not in known:
        raise ConfigError(
            "data.chat_template",
            f"no template named {name!r}. {did_you_mean(name, known)} (or the path of a .jinja file)",
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("data.chat_template", unreadable(name if own else str(path), error)) from None
    if not can_mask(text):
        raise ConfigError(
            "data.chat_template",
            f"{name}: has no generation markers, so nothing could be trained on; put {{% generation %}} ... "
            "{% endgeneration %} around what the assistant says, stop token included",
        )
    return text


def can_mask(text: str) -> bool:
    """Whether a template has generation markers."""
    return re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", text) is not None


@dataclass(frozen=True)
class TemplateTokens:
    """The control tokens of a template, as its first line declares them."""

    needed: tuple[str, ...]
    """Tokens that its text spells; a tokenizer without one of them cannot be used with it."""
    named: dict[str, str]
    """`bos_token` and `eos_token` of a new tokenizer; a model's tokenizer has its own."""


def template_tokens(text: str) -> TemplateTokens | None:
    """From a template's first line: `{#- tokens: <a> <b>; new tokenizer: eos_token=<b> -#}`; None without one."""
    declared = re.match(r"\{#-? tokens: *([^\n]*?); new tokenizer: *([^\n]*?) *-?#\}", text)
    if declared is None:
        return None
    return TemplateTokens(tuple(declared[1].split()), dict(word.split("=", 1) for word in declared[2].split()))


def _module_file(module: str) -> Path:
    """The source file of a `.py` path or an importable name, without importing it."""
    if module.endswith(".py"):
        if not Path(module).is_file():
            raise ConfigError("data.transform_modules", f"{module}: no such file")
        return Path(module)
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise ConfigError("data.transform_modules", f"{module!r}: neither a .py file nor an importable module")
    return Path(spec.origin)


def _parsed(file: Path) -> ast.Module:
    try:
        stat = file.stat()
        return _parsed_version(file, stat.st_mtime_ns, stat.st_size)
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        raise ConfigError("data.transform_modules", f"{file}: cannot be read as Python ({error})") from None


@lru_cache
def _parsed_version(file: Path, _mtime_ns: int, _size: int) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), file.name)


def _neighbours(file: Path, tree: ast.Module, seen: set[Path]) -> list[Path]:
    """The modules that a file imports and that are beside it or in the package that it is a part of, and what they import."""
    found: list[Path] = []
    for module, names in _imports(file, tree):
        for neighbour in (path for root in _roots(file) for path in _files_of(root, file, module, names)):
            if neighbour not in seen:
                seen.add(neighbour)
                found += [neighbour, *_neighbours(neighbour, _parsed(neighbour), seen)]
    return found


def _imports(file: Path, tree: ast.Module) -> Iterator[tuple[str, list[str]]]:
    """Each imported module, and the names that are taken from it, which may be modules too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module, names = node.module or "", [alias.name for alias in node.names]
            own = module.removeprefix("post_training.data.transforms.") if file.parent == TRANSFORMS else module
            if not own.startswith("post_training"):
                yield own, names


def _roots(file: Path) -> list[Path]:
    """Folders in which Python looks for what a module imports: its own, and that of the outermost package around it."""
    outer = file.parent
    while file.parent not in (TRANSFORMS, REWARDS) and (outer / "__init__.py").is_file():
        outer = outer.parent
    return list(dict.fromkeys([file.parent, outer]))


def _files_of(root: Path, file: Path, module: str, names: list[str]) -> list[Path]:
    """The files that an import reads below one of the `_roots` of a file; of the outer one, its own package alone."""
    parts = [part for part in module.split(".") if part]
    if root != file.parent and parts[:1] != [file.relative_to(root).parts[0]]:
        return []
    modules = [root.joinpath(*parts).with_suffix(".py")] if parts else []
    modules += [root.joinpath(*parts, f"{name}.py") for name in names if name != "*"]
    packages = [root.joinpath(*parts[:depth], "__init__.py") for depth in range(1, len(parts) + 1)]
    return [path for path in (*modules, *packages) if path.is_file()]


def _registered(node: ast.stmt) -> tuple[str, str] | None:
    """Decorator and name of a transform or reward."""
    for decorator in node.decorator_list if isinstance(node, ast.FunctionDef) else []:
        match decorator:
            case ast.Call(func=ast.Name(id=found) | ast.Attribute(attr=found), args=[ast.Constant(value=name), *_]) if (
                found in ("register_transform", "register_reward")
            ):
                return found, str(name)
    return None


def _dump_function(node: ast.stmt) -> str:
    """A registered function without what the planner alone reads, which decides no result."""
    calls = [call for call in getattr(node, "decorator_list", []) if isinstance(call, ast.Call)]
    kept = {call: call.keywords for call in calls}
    for call in calls:
        call.keywords = [keyword for keyword in call.keywords if keyword.arg not in _FOR_THE_PLANNER]
    dumped = ast.dump(node)
    for call, keywords in kept.items():
        call.keywords = keywords
    return dumped


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
