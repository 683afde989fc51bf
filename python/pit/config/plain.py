"""Configs as plain data: JSON without loss, YAML or JSON files, `section.field=value` settings, stable hashes."""

import contextlib
import dataclasses
import difflib
import hashlib
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import yaml

from pit.config.rules import ConfigError, FieldError
from pit.config.run import RunConfig
from pit.terminal import printable

T = TypeVar("T")


class _Word(str):
    """A value from the command line, where `none` stands for None; a string of a file stands for itself."""


def to_dict(config: object) -> dict[str, Any]:
    """Return the nested plain values of a config, ready for JSON."""
    return cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(cast(Any, config)))))


def from_dict(cls: type[T], values: Mapping[Any, Any], where: str = "") -> T:
    """Return a config made from nested plain values.

    Args:
        cls: class of the config.
        values: its fields; fields that are missing take their defaults.
        where: path of the config in that of the run, with a dot at its end.

    Raises:
        ConfigError: a field is unknown; the message names the nearest known one.
        FieldError: a value breaks a rule; its path is the one that `--set` takes.
    """
    hints = _hints(cast(Any, cls))
    names = [f.name for f in dataclasses.fields(cast(Any, cls))]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {where}{near[0]}?" if near else f"known: {', '.join(names)}"
            raise ConfigError(f"{where}{key}: is not a config field; {hint}")
        arguments[key] = _typed(hints[key], value, f"{where}{key}")
    try:
        return cls(**arguments)
    except FieldError as error:
        # A whole run's errors carry their path; a section learns here where it stands.
        raise (error.inside(where) if error.section else error) from None


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _typed(hint: Any, value: Any, where: str) -> Any:
    """Check one plain value against its annotation; strings from the command line are read as that type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            fields = ", ".join(f.name for f in dataclasses.fields(hint))
            raise FieldError(where, value, "is a section", f"set one of its fields ({fields}): {{path}}.FIELD=VALUE")
        return from_dict(cast(type, hint), value, f"{where}.")
    if origin in (types.UnionType, typing.Union):
        if value is None or (isinstance(value, _Word) and value == "none"):
            return None
        return _typed(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        if value not in args:
            choices = ", ".join(map(str, args))
            raise FieldError(where, value, f"must be one of {choices}", f"for example {{path}}={args[0]}")
        return next(a for a in args if a == value)
    return _scalar(hint, value, where)


_EXAMPLES = {bool: "true", int: "3", float: "0.5", str: "text"}


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is bool:
        if isinstance(value, bool):
            return value
        if value in ("true", "false"):
            return value == "true"
    elif hint is int and not isinstance(value, bool):
        if isinstance(value, int):
            return value
        if isinstance(value, str) and re.fullmatch("-?[0-9]{1,30}(_[0-9]{1,30}){0,9}", value):
            return int(value)
    elif hint is float and not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            return float(value)
    elif hint is str and isinstance(value, str):
        return str(value)
    raise FieldError(where, value, f"must be of type {hint.__name__}", f"for example {{path}}={_EXAMPLES[hint]}")


def override(config: RunConfig, settings: Sequence[str]) -> RunConfig:
    """Return the config with `section.field=value` settings applied in order, validated as a whole.

    Raises:
        ConfigError: a setting has another form, or names no field.
        FieldError: a value breaks a rule.
    """
    values = to_dict(config)
    for setting in settings:
        path, separator, value = setting.partition("=")
        if not separator or not path:
            raise ConfigError(f"--set {setting}: must have the form section.field=value, for example --set seed=3")
        node, *parents = values, *path.split(".")[:-1]
        for part in parents:
            if part in node and node[part] is None:
                # A section that is off is on with its defaults where one of its fields is set.
                node[part] = {}
            if not isinstance(node.get(part), dict):
                raise ConfigError(f"--set {setting}: {part!r} is not a config section; known: {', '.join(node)}")
            node = node[part]
        node[path.split(".")[-1]] = _Word(value)
    return from_dict(RunConfig, values)


def read_config(path: Path, base: RunConfig) -> RunConfig:
    """Return `base` with the fields of a YAML or JSON file in the place of its own.

    Raises:
        ConfigError: the file cannot be read, or is not a mapping of config fields.
        FieldError: a value breaks a rule.
    """
    try:
        values = _parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give --config a YAML or JSON file") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: is neither YAML nor JSON ({reason}); `pit config demo` prints one") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must be a mapping of config fields; `pit config demo` prints one")
    try:
        return from_dict(RunConfig, _merged(to_dict(base), values))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _parsed(text: str) -> Any:
    """Return the values of a JSON or YAML text; a doubled field is refused, because the last would silently win."""
    try:
        # Not as YAML: PyYAML reads neither JSON's pairs of surrogates nor its tabs.
        return json.loads(text, object_pairs_hook=_mapping)
    except json.JSONDecodeError:
        return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML without doubled keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        _mapping([(key.value, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)])
        return cast(dict[Any, Any], super().construct_mapping(node, deep))


def _mapping(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ConfigError(f"{next(name for name in names if names.count(name) > 1)}: is given twice; keep one of them")
    return values


def _merged(base: Mapping[str, Any], values: Mapping[Any, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in values.items():
        below = base.get(name)
        merged[name] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def to_yaml(config: RunConfig) -> str:
    """Return the config as YAML, fields in the order of their classes; control characters as escapes."""
    texts: list[str] = [yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=each) for each in (True, False)]
    return texts[0] if printable(texts[0]) == texts[0] else texts[1]


def digest(*parts: object) -> str:
    """Return a short stable hash of plain values and configs, for stamps that say what a result was made from.

    A field that is marked `LATER` counts only where it differs from its default.
    """
    plain = [_counted(p) for p in parts]
    return hashlib.blake2b(json.dumps(plain, sort_keys=True).encode(), digest_size=16).hexdigest()


def _counted(value: Any) -> Any:
    """Return a config as nested plain values of the fields that a digest holds; any other value as it is."""
    if not dataclasses.is_dataclass(value):
        return value
    fields = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
    return {f.name: _counted(held) for f, held in fields if not (f.metadata.get("later") and held == _default(f))}


def _default(field: "dataclasses.Field[Any]") -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()
