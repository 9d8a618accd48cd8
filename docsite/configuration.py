"""The reference of every settings file, and its JSON Schema for editors, from the types that read it.

python -m docsite.configuration            # writes docs/reference/*.md and docs/reference/schema/*.json
python -m docsite.configuration --check    # exit code 2 if they are not those of the types
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dusss_core.config import Strict
from dusss_core.errors import UserError
from dusss_core.files import write_text
from feddusss import cli

FOLDER = Path(__file__).parents[1] / "docs" / "reference"


class Kind(NamedTuple):
    """A kind of settings file."""

    name: str
    title: str
    schema: type[BaseModel]
    about: str


def kinds() -> list[Kind]:
    """Every kind of file that a user writes, in the order of the reference."""
    from server.study.config import StudyConfig
    from sites.config import SiteConfig
    from sites.partition import PartitionConfig
    from sites.synth.config import SynthConfig

    return [
        Kind(
            "study",
            "The study file",
            StudyConfig,
            "What is trained, how it is federated, and, in a simulation, with which sites. Read by `python -m server "
            "simulate`, `run` and `provision`; a site is sent all of it but `federation`, `data`, `simulation` and "
            "`deployment`.",
        ),
        Kind(
            "site",
            "A site's own file",
            SiteConfig,
            "Where a hospital's data lie, what it allows, and where its private state is kept. Paths are relative to "
            "the file. Read by `python -m client` and `python -m sites check`; no message can change it.",
        ),
        Kind(
            "partition",
            "How a data set becomes sites",
            PartitionConfig,
            "For `python -m sites partition --config FILE`, and in a study file under `simulation.partition`. "
            "[A hospital's data](../data.md#the-manifest) says what to choose.",
        ),
        Kind(
            "synth",
            "Synthetic hospitals",
            SynthConfig,
            "For `python -m sites synth --config FILE`, and in a study file under `simulation.data.synth`.",
        ),
    ]


class Key(NamedTuple):
    """One key of a file."""

    path: str
    """Dotted, from the top of the file; `[]` and `NAME` stand for any element and any key."""
    field: FieldInfo
    model: type[BaseModel]
    """The type that the key is of."""

    @property
    def meaning(self) -> str:
        """What its docstring says, in one line; '' where there is none."""
        said = self.field.description or ""
        if not said:
            inner = models_in(self.field.annotation)
            said = (inner[0].__doc__ or "").strip().partition("\n\n")[0] if len(inner) == 1 else ""
        return " ".join(said.split())


def keys(model: type[BaseModel], prefix: str = "", stop: Sequence[type[BaseModel]] = ()) -> Iterator[Key]:
    """Every key of a type, a section's own before those within it; types in `stop` are not entered."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        yield Key(path, field, model)
        for inner in models_in(field.annotation):
            if inner not in stop:
                yield from keys(inner, f"{path}{_many(field.annotation)}.", stop)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The types of settings that a value of this type is or holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def _many(annotation: Any) -> str:
    origin = get_origin(annotation)
    return {list: "[]", dict: ".NAME"}.get(origin, "") if isinstance(origin, type) else ""


def type_of(annotation: Any, constraints: Sequence[Any] = ()) -> str:
    """A type as a user reads it, with its allowed values: "integer, at least 1", "`a` or `b`"."""
    said = _plain(annotation)
    bounds = [text for each in constraints for text in _bounds(each)]
    return ", ".join([said, *bounds])


def _plain(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_of(inner[0], [part for extra in inner[1:] for part in getattr(extra, "metadata", [extra])])
    if origin is Literal:
        return " or ".join(f"`{_yaml(value)}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join("`null`" if part is NoneType else _plain(part) for part in inner)
    if origin is list:
        return f"list of {_plain(inner[0])}"
    if origin is dict:
        return f"mapping of {_plain(inner[0])} to {_plain(inner[1])}"
    if issubclass(annotation, BaseModel):
        return "section"
    if issubclass(annotation, Enum):
        return " or ".join(f"`{value.value}`" for value in annotation)
    return {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}[annotation]


_BOUNDS = {
    "ge": "at least {:g}",
    "gt": "above {:g}",
    "le": "at most {:g}",
    "lt": "below {:g}",
    "multiple_of": "a multiple of {:g}",
    "min_length": "not empty",
    "pattern": "as `{}`",
}


def _bounds(constraint: Any) -> list[str]:
    found = []
    for name, text in _BOUNDS.items():
        value = getattr(constraint, name, None)
        if value is not None:
            found.append(text.format(value.replace("|", "\\|") if isinstance(value, str) else value))
    return found


def default_of(field: FieldInfo) -> str:
    """The value of a key that is left out, as YAML; "required" where it must be there."""
    if field.default is PydanticUndefined and field.default_factory is None:
        return "*required*"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "–"
    if isinstance(value, list) and value and isinstance(value[0], (BaseModel, dict)):
        return f"the {len(value)} standard ones"
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    if isinstance(value, str):
        return value if value else '""'
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_yaml, value))}]"
    return json.dumps(value)


def page(kind: Kind, others: dict[type[BaseModel], Kind]) -> str:
    """The reference of one kind of file, in Markdown."""
    lines = [
        f"# {kind.title}",
        "",
        "<!-- written by docsite/configuration.py from the types; change these -->",
        "",
        kind.about,
        "",
        f"[{kind.name}.json](schema/{kind.name}.json) is its JSON Schema, [for an editor](index.md#in-an-editor).",
    ]
    for title, about, rows in _sections(kind.schema, others):
        lines += ["", f"## {title}", "", *([about, ""] if about else [])]
        lines += ["| Key | Value | If left out | Meaning |", "|---|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _sections(schema: type[BaseModel], others: dict[type[BaseModel], Kind]) -> Iterator[tuple[str, str, list[str]]]:
    """Title, what it is, and rows, section by section, from the top of the file."""
    waiting: list[tuple[str, type[BaseModel]]] = [("", schema)]
    while waiting:
        prefix, model = waiting.pop(0)
        rows, within = [], []
        for name, field in model.model_fields.items():
            inner = models_in(field.annotation)
            below = f"{prefix}{name}{_many(field.annotation)}."
            elsewhere = others.get(inner[0]) if len(inner) == 1 else None
            rows.append(_row(name, Key(f"{prefix}{name}", field, model), below, elsewhere))
            within += [(below, each) for each in inner if each not in others]
        about = " ".join((model.__doc__ or "").split()) if prefix else ""
        yield f"`{prefix.removesuffix('.')}`" if prefix else "Top level", about, rows
        waiting = within + waiting


def _row(name: str, key: Key, below: str, elsewhere: Kind | None) -> str:
    value = type_of(key.field.annotation, key.field.metadata)
    if elsewhere is not None:
        value = f"[{elsewhere.title[0].lower()}{elsewhere.title[1:]}]({elsewhere.name}.md)"
    elif models_in(key.field.annotation):
        value = value.replace("section", f"[section](#{_anchor(below)})", 1)
    meaning = re.sub(r"(?<!\\)\|", r"\\|", key.meaning)
    return f"| `{name}` | {value} | {default_of(key.field)} | {meaning} |"


def _anchor(prefix: str) -> str:
    return re.sub(r"[^\w\- ]", "", prefix.lower())


def schema_of(kind: Kind) -> str:
    """JSON Schema of one kind of file, as text."""
    schema = kind.schema.model_json_schema(by_alias=True)
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": f"feddusss: {kind.name}"}
    return json.dumps(_short_forms(schema), indent=1, ensure_ascii=False) + "\n"


_SHORT = {
    "RuntimeConfig": {"const": "auto"},
    "PersonalConfig": {"enum": ["none", "ditto", "fedrep", "apfl", "finetune"]},
}
"""What stands for a whole section (`runtime: auto`); validators of the types say so, which no schema tells."""


def _short_forms(schema: dict[str, Any]) -> dict[str, Any]:
    known = schema.get("$defs", {})
    for name, short in _SHORT.items():
        if name in known:
            known[name] = {"anyOf": [short, known[name]], "description": known[name].get("description", "")}
    for holder in (schema, known.get("SynthConfig", {})):
        hospitals = holder.get("properties", {}).get("hospitals")
        if hospitals:
            listed = {key: hospitals.pop(key) for key in ("items", "type", "minItems") if key in hospitals}
            hospitals["anyOf"] = [listed, {"type": "integer", "minimum": 1}]
    return schema


def files() -> dict[Path, str]:
    """Every file that is written, and what it holds."""
    found = {}
    all_kinds = kinds()
    for kind in all_kinds:
        others = {other.schema: other for other in all_kinds if other is not kind and other.schema is not Strict}
        found[FOLDER / f"{kind.name}.md"] = page(kind, others)
        found[FOLDER / "schema" / f"{kind.name}.json"] = schema_of(kind)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Write the reference, or compare what is there with the types."""
    parser = argparse.ArgumentParser(prog="python -m docsite.configuration", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 2 if a file is not current")
    cli.add_common_arguments(parser, overrides=False)
    return cli.run(_write, parser, argv)


def _write(arguments: argparse.Namespace) -> None:
    wanted = files()
    if arguments.check:
        old = [path.name for path, text in wanted.items() if not path.is_file() or path.read_text("utf-8") != text]
        if old:
            raise UserError(f"docs/reference: {', '.join(old)} not current", "python -m docsite.configuration")
        return
    for path, text in wanted.items():
        write_text(path, text)
        print(path)


if __name__ == "__main__":
    sys.exit(main())
