"""Configs as plain data: to JSON and back without loss, `section.field=value` edits, and stable hashes."""

import dataclasses
import difflib
import hashlib
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, cast

from pit.config.rules import ConfigError
from pit.config.run import RunConfig

T = TypeVar("T")


class _Word(str):
    """A value from the command line, where `none` stands for None; a string of a file stands for itself."""


def to_dict(config: object) -> dict[str, Any]:
    """Nested plain values of a config, ready for JSON."""
    return cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(cast(Any, config)))))


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build a config from nested plain values; unknown fields are refused with the nearest known one."""
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cast(Any, cls))]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {where}{near[0]}?" if near else f"known: {', '.join(names)}"
            raise ConfigError(f"{where}{key}: no such config field; {hint}")
        arguments[key] = _typed(hints[key], value, f"{where}{key}")
    return cls(**arguments)


def _typed(hint: Any, value: Any, where: str) -> Any:
    """Check one plain value against its annotation; strings from the command line are read as that type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} = {value!r}: is a section; set one of its fields, {where}.FIELD=VALUE")
        return from_dict(cast(type, hint), value, f"{where}.")
    if origin is types.UnionType:
        if value is None or (isinstance(value, _Word) and value == "none"):
            return None
        return _typed(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where} = {value!r}: must be one of {', '.join(map(str, args))}; choose one")
        return next(a for a in args if a == value)
    if origin is tuple:
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
        if len(parts) != len(args):
            raise ConfigError(f"{where} = {value!r}: needs {len(args)} values; separate them by commas")
        return tuple(_typed(a, p, where) for a, p in zip(args, parts, strict=True))
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is bool:
        if isinstance(value, bool):
            return value
        if value in ("true", "false"):
            return value == "true"
    elif hint is int and not isinstance(value, bool):
        if isinstance(value, int):
            return value
        if isinstance(value, str) and re.fullmatch("-?[0-9]+(_[0-9]+)*", value):
            return int(value)
    elif hint is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif hint is str and isinstance(value, str):
        return str(value)
    raise ConfigError(f"{where} = {value!r}: must be of type {hint.__name__}; give such a value")


def override(config: RunConfig, settings: Sequence[str]) -> RunConfig:
    """Apply `section.field=value` settings, in order, and validate the whole again."""
    values = to_dict(config)
    for setting in settings:
        path, separator, value = setting.partition("=")
        if not separator or not path:
            raise ConfigError(f"--set {setting}: must have the form section.field=value; write it so")
        node, *parents = values, *path.split(".")[:-1]
        for part in parents:
            if not isinstance(node.get(part), dict):
                raise ConfigError(f"--set {setting}: {part!r} is no config section; known: {', '.join(node)}")
            node = node[part]
        node[path.split(".")[-1]] = _Word(value)
    return from_dict(RunConfig, values)


def derived_seed(*parts: object) -> int:
    """A seed of 31 bits that plain values decide: of a run's seed and what it is for."""
    return int(digest(*parts)[:8], 16) >> 1


def digest(*parts: object) -> str:
    """Short stable hash of plain values and configs, for stamps that say what a result was made from."""
    plain = [to_dict(p) if dataclasses.is_dataclass(p) else p for p in parts]
    return hashlib.blake2b(json.dumps(plain, sort_keys=True).encode(), digest_size=16).hexdigest()
