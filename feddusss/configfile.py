"""YAML config files: read, overridden by --set, checked against their schema, errors with file, key and remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from dusss_core.errors import UserError

Schema = TypeVar("Schema", bound=BaseModel)


class _EachKeyOnce(yaml.SafeLoader):
    """YAML in which a mapping has a key once. PyYAML lets the last of two stand, so that a second `limits:` at the end
    of a file would take away what the first one forbids."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in first:
                    there = f"'{key.value}' stands here and in line {first[key.value] + 1}: one of them would not count"
                    raise yaml.composer.ComposerError(None, None, there, key.start_mark)
                first[key.value] = key.start_mark.line
        return node


def load(schema: type[Schema], path: Path, overrides: Iterable[str] = ()) -> Schema:
    """Read the YAML file `path` into `schema`.

    Args:
        overrides: `a.b=c` strings, as given to --set; the value is read as YAML.

    Raises:
        UserError: no such file, not YAML, unknown key (the nearest known one is named), wrong type or value.
    """
    return parse(schema, read_yaml(path), str(path), overrides)


def parse(schema: type[Schema], values: Mapping[str, Any], source: str, overrides: Iterable[str] = ()) -> Schema:
    """Check `values` against `schema`, after `overrides`; `source` names where they come from in errors."""
    overrides, before = list(overrides), values
    values = _deep_copy(values)
    for override in overrides:
        _apply(values, override)
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        old = {_name(e) for e in _errors(schema, before)} if overrides else set()
        sources = [_blamed(e, overrides) if overrides and _name(e) not in old else source for e in error.errors()]
        told = [_explain(schema, source, e) for source, e in zip(sources, error.errors(), strict=True)]
        raise UserError("\n".join(told)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        UserError: no such file, not readable, not YAML, not a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: could not be read: {error}", "a config file is UTF-8 text in YAML") from None
    try:
        values = _parsed(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise UserError(f"{path}: {place}{problem}", "mend the YAML there") from None
    except RecursionError:
        raise UserError(f"{path}: brackets within brackets without end", "mend the YAML there") from None
    except ValueError as error:  # a date that is none, a number of thousands of digits
        raise UserError(f"{path}: {str(error)[:200]}", "mend that value") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds a {type(values).__name__}", "a config file is a mapping of keys to values")
    return values


def _parsed(text: str) -> Any:
    """As `yaml.safe_load`, which makes plain values alone, but that each key stands once."""
    return yaml.load(text, _EachKeyOnce)


def dump(config: BaseModel) -> str:
    """The fully resolved config as YAML text."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted keys (a.b.c)."""
    if isinstance(values, Mapping) and values:
        return {k: v for key, inner in values.items() for k, v in flat(inner, f"{prefix}{key}.").items()}
    return {prefix.removesuffix("."): values}


def _deep_copy(value: Any) -> Any:
    return {key: _deep_copy(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise UserError(f"--set {override}: not of the form a.b=c", "name the key, an equals sign, and the value")
    try:
        value = _parsed(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"--set {override}: the value is not YAML", "put quotes around it") from None
    *parents, last = key.strip().split(".")
    place = values
    for parent in parents:
        inner = place.get(parent)
        if inner is None:
            inner = place[parent] = {}
        if not isinstance(inner, dict):
            raise UserError(f"--set {override}: '{parent}' holds a value, not keys", "check the key")
        place = inner
    place[last] = value


def _errors(schema: type[BaseModel], values: Mapping[str, Any]) -> list[Any]:
    """What is wrong with `values`."""
    try:
        schema.model_validate(values)
    except ValidationError as error:
        return error.errors()
    return []


def _name(error: Mapping[str, Any]) -> tuple[Any, ...]:
    """Tells an error from others: where it is, and what it says."""
    return error["loc"], error["type"], error["msg"], repr(error.get("input"))[:200]


def _blamed(error: Mapping[str, Any], overrides: list[str]) -> str:
    """The --set that an error comes from: the last one of its key; of settings that do not go together all of them."""
    place = [str(part) for part in error["loc"]]
    for override in reversed(overrides):
        key = override.partition("=")[0].strip().split(".")
        if place[: len(key)] == key:
            return _without_password(f"--set {override}")
    return _without_password(", ".join(f"--set {override}" for override in overrides))


def _without_password(text: str) -> str:
    return re.sub(r"//[^/\s]*@", "//...@", text)


def _explain(schema: type[BaseModel], source: str, error: Mapping[str, Any]) -> str:
    location = [str(part) for part in error["loc"]]
    key = ".".join(location) or "(top level)"
    if error["type"] == "extra_forbidden":
        known = _known_keys(schema, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys here: {', '.join(sorted(known)) or 'none'}"
        return f"{source}: unknown key '{key}'\n  -> {hint}"
    if error["type"] == "missing":
        return f"{source}: '{key}' is missing\n  -> add it"
    if error["type"] == "literal_error" and isinstance(error.get("input"), str):
        known = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        near = difflib.get_close_matches(error["input"], known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        return f"{source}: '{key}': '{error['input']}' is not known\n  -> {hint}known here: {', '.join(known)}"
    message = error["msg"].removeprefix("Value error, ")
    shown = repr(error.get("input"))
    given = "" if error["type"] == "value_error" or len(shown) > 80 else f" (given: {shown})"
    return f"{source}: '{key}': {message}{given}\n  -> correct the value"


def _known_keys(schema: type[BaseModel], location: list[str]) -> list[str]:
    """Field names of the model that is found by following `location` from `schema`."""
    models = [schema]
    for part in location:
        following = []
        for model in models:
            field = model.model_fields.get(part)
            following += _models_in(field.annotation) if field else [model]
        models = following
    return sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]
