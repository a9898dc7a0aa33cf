"""The schema -> `config/README.md` and `config/schema.json`, so that neither can fall behind.

Run `make docs`; a test fails while they differ from the schema.
"""

import ast
import dataclasses
import importlib
import itertools
import json
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from post_training import methods
from post_training.config import schema
from post_training.data import registry

CONFIG = Path(__file__).resolve().parents[3] / "config"
_INTRO = """# Configuration

Every key, its type, its default and its meaning. Generated from the schema by `make docs`; do not edit.

One YAML file describes a pipeline. Sections other than the methods' own (`sft`, `dpo`) are shared by
every stage, and may be given again inside a method's section for that stage alone:
`training.learning_rate` is shared, `dpo.training.learning_rate` is DPO's. Later wins: defaults, file
(shared), file (stage), command line (shared), command line (stage).

    snakemake --configfile my.yaml --config method=dpo set='training.max_steps=200 data.datasets[0].weight=0.5'

`set` takes dotted keys; for values with spaces give it a list: `set='["run_name=x", "data.seed=3"]'`.

A method is a stage of that name: `sft`, then `dpo` on its output. A section of any other name is one more stage
when it says of which method, and `init_from` puts it into its place:

    method: dpo
    sft: {max_seq_length: 4096}
    maths: {method: sft, init_from: sft, data: {datasets: [{path: maths.jsonl}]}}
    dpo: {init_from: maths, data: {datasets: [{path: pairs.jsonl, transform: preference}]}}

An index edits the list where it stands: `data.datasets[0]` is the shared list, `dpo.data.datasets[0]` DPO's.
"""
_TRANSFORMS = """
## Transforms

What `transform:` may name, as `transform: alpaca` or `transform: {name: alpaca, output: response}`; arguments and their
defaults in braces. Each gives conversations, preferences or judged answers, which are then checked.
"""


@dataclasses.dataclass(frozen=True)
class Key:
    """One documented key."""

    path: str
    kind: Any
    default: Any
    text: str


def keys(cls: type, prefix: str = "") -> Iterator[Key]:
    """The keys of a section and of the sections in it, in the order of the source."""
    texts = _field_texts(cls)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        path, kind = f"{prefix}{field.name}", hints[field.name]
        default = field.default if field.default is not dataclasses.MISSING else _made(field)
        nested = next((part for part in _parts(kind) if dataclasses.is_dataclass(part)), None)
        text = texts.get(field.name, "")
        if nested is None:
            yield Key(path, kind, default, text)
            continue
        listed = typing.get_origin(kind) is list
        if text:
            yield Key(path, kind, [] if listed else default if default is None else {}, text)
        yield from keys(typing.cast(type, nested), f"{path}[]." if listed else f"{path}.")


def readme() -> str:
    """The text of config/README.md."""
    lines = [_INTRO]
    for title, text, found in _sections():
        lines += [f"\n## {title}\n\n{text}\n", "| key | type | default | meaning |", "|---|---|---|---|"]
        lines += [f"| `{k.path}` | {_type_name(k.kind)} | {_shown(k.default)} | {_cell(k.text)} |" for k in found]
    lines.append(_TRANSFORMS)
    for name, source in registry.transform_names([]).items():
        arguments, defaults = source.function.args.args[1:], source.function.args.defaults
        given = ", ".join(f"{a.arg}: {ast.unparse(d)}" for a, d in zip(arguments, defaults, strict=True))
        text = (ast.get_docstring(source.function) or "").partition(">>>")[0]
        lines.append(f"- **`{name}`** `{{{given}}}`. {' '.join(text.split())}")
    return "\n".join(lines) + "\n"


def json_schema() -> dict[str, Any]:
    """A JSON schema for editors: completion, hover texts, unknown keys marked."""
    shared = {f.name: _object(_section_type(f)) for f in dataclasses.fields(schema.SharedSections)}
    tree: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": {**shared}}
    tree["properties"] |= _object(schema.GlobalSections)["properties"]
    for name in methods.names():
        own = _object(methods.load(name).Config)
        own["properties"] |= shared
        tree["properties"][name] = own
    # A stage with a name of its own.
    named = {"type": "object", "required": ["method"], "properties": {"method": {"enum": methods.names()}}}
    tree["additionalProperties"] = named
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "post-training", **tree}


def _sections() -> Iterator[tuple[str, str, list[Key]]]:
    top = [key for key in keys(schema.GlobalSections) if "." not in key.path]
    yield "Top level", (schema.GlobalSections.__doc__ or "").strip(), top
    for cls in (schema.GlobalSections, schema.SharedSections):
        for field in dataclasses.fields(cls):
            kind = _section_type(field)
            if dataclasses.is_dataclass(kind):
                yield (
                    f"`{field.name}`",
                    (kind.__doc__ or "").strip(),
                    list(keys(typing.cast(type, kind), f"{field.name}.")),
                )
    for name in methods.names():
        cls = methods.load(name).Config
        yield f"`{name}`", (cls.__doc__ or "").strip(), list(keys(cls, f"{name}."))


def _section_type(field: Any) -> Any:
    return next(part for part in _parts(field.type) if part is not type(None))


def _field_texts(cls: type) -> dict[str, str]:
    """The string below each field, own and inherited; Python itself does not keep them."""
    texts: dict[str, str] = {}
    for owner in reversed(cls.__mro__[:-1]):
        module = importlib.import_module(owner.__module__)
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        body = next((n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == owner.__name__), [])
        for node, below in itertools.pairwise(body):
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                texts[ast.unparse(node.target)] = " ".join(str(below.value.value).split())
    return texts


def _object(cls: type) -> dict[str, Any]:
    hints, texts = typing.get_type_hints(cls), _field_texts(cls)
    properties = {f.name: _json_type(hints[f.name]) for f in dataclasses.fields(cls)}
    for f in dataclasses.fields(cls):
        default = f.default if f.default is not dataclasses.MISSING else _made(f)
        if not dataclasses.is_dataclass(default):
            properties[f.name]["default"] = default
        if f.name in texts:
            properties[f.name]["description"] = texts[f.name]
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _json_type(kind: Any) -> dict[str, Any]:
    simple = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
    if kind is Any:
        return {}
    if kind in simple:
        return {"type": simple[kind]}
    if dataclasses.is_dataclass(kind):
        return _object(typing.cast(type, kind))
    origin = typing.get_origin(kind)
    if origin is list:
        return {"type": "array", "items": _json_type(typing.get_args(kind)[0])}
    if origin is dict:
        return {"type": "object"}
    return {"anyOf": [_json_type(part) for part in typing.get_args(kind)]}


def _parts(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (list, typing.Union, types.UnionType) else (kind,)


def _made(field: Any) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is list:
        return f"list of {_type_name(typing.get_args(kind)[0])}"
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _type_name(part) for part in typing.get_args(kind))
    if dataclasses.is_dataclass(kind) or typing.get_origin(kind) is dict:
        return "mapping"
    return "any" if kind is Any else str(kind.__name__)


def _shown(default: Any) -> str:
    return f"`{json.dumps(default)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Write both files."""
    (CONFIG / "README.md").write_text(readme(), encoding="utf-8")
    (CONFIG / "schema.json").write_text(json.dumps(json_schema(), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
