"""The public names of the packages, read from their sources.

One rule says what is public: a module no part of whose name begins with an underscore, and in it the functions, classes
and constants without one, with the methods, properties and fields of the classes. Sources are parsed and not imported,
so that shapes in annotations stay as written, and the Triton kernels need no Triton.
"""

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Literal, NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGES = {"pit": ROOT / "python" / "pit", "pit_kernels": ROOT / "kernels" / "pit_kernels"}
"""Name of a package to its folder."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Kind = Literal["function", "class", "data", "method", "property", "classmethod", "staticmethod"]


class Field(NamedTuple):
    """Field of a class: its annotation and its default as written; None where there is none."""

    name: str
    annotation: str
    default: str | None


@dataclass(frozen=True)
class Member:
    """A public name of a module or of a class.

    name: without the module or class. signature: with its annotations; a type or a value for data.
    doc: its docstring, dedented; empty where there is none.
    fields, members, bases: of a class alone.
    """

    name: str
    kind: Kind
    signature: str
    doc: str
    fields: tuple[Field, ...] = ()
    members: "tuple[Member, ...]" = ()
    bases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Module:
    """A public module, by its full name, with its parsed source."""

    name: str
    path: Path

    @cached_property
    def _tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"))

    @property
    def is_package(self) -> bool:
        """Whether it is the `__init__.py` of a folder."""
        return self.path.name == "__init__.py"

    @property
    def doc(self) -> str:
        """Docstring of the module."""
        return ast.get_docstring(self._tree) or ""

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """Public names that the module defines, in the order of the source."""
        return tuple(_members(self._tree.body))

    @cached_property
    def entry_points(self) -> tuple[str, ...]:
        """Names in `__all__`, which users import from this package whatever module defines them."""
        for node in self._tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                return tuple(ast.literal_eval(node.value))
        return ()

    @cached_property
    def imports(self) -> dict[str, tuple[str, str]]:
        """Imported name to its module and its name there."""
        return {
            alias.asname or alias.name: (node.module, alias.name)
            for node in self._tree.body
            if isinstance(node, ast.ImportFrom) and node.module and not node.level
            for alias in node.names
        }


@cache
def modules() -> dict[str, Module]:
    """Return every public module by its name, a package before its modules, alphabetically."""
    named = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = (package, *path.relative_to(folder).with_suffix("").parts)
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            if not any(part.startswith("_") for part in parts):
                named[".".join(parts)] = Module(".".join(parts), path)
    return dict(sorted(named.items()))


def public_names() -> Iterator[tuple[str, Member]]:
    """Yield the full name of every public name with what it stands for, those of classes too."""
    for module in modules().values():
        for member in module.members:
            yield f"{module.name}.{member.name}", member
            for part in member.members:
                yield f"{module.name}.{member.name}.{part.name}", part


def undocumented(named: Iterable[tuple[str, Member]]) -> list[str]:
    """Return the names that say nothing of themselves; a constant without a docstring shows its value."""
    return [name for name, member in named if not member.doc and (member.kind != "data" or not member.signature)]


def full_name(module: str, name: str) -> str | None:
    """Return the public name that a word in an annotation of a module means; None for names of others."""
    return defined_in(modules()[module], name) if module in modules() else None


def defined_in(module: Module, name: str) -> str | None:
    """Return the full name under which an entry point is defined; None where no public module of ours defines it."""
    if any(member.name == name for member in module.members):
        return f"{module.name}.{name}"
    source, original = module.imports.get(name, ("", ""))
    return defined_in(modules()[source], original) if source in modules() else None


def _members(body: Sequence[ast.stmt], of_class: bool = False) -> Iterator[Member]:
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield _class(node)
        elif isinstance(node, Function) and not node.name.startswith("_"):
            if not _decorated(node, "overload", "setter"):
                yield _function(node, of_class)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and not of_class:
            yield from _data(node, following)


def _decorated(node: Function | ast.ClassDef, *names: str) -> bool:
    """Return whether a decorator has one of the names, such as `property` or `functools.cache`."""
    plain = (call.func if isinstance(call, ast.Call) else call for call in node.decorator_list)
    return any(ast.unparse(decorator).rpartition(".")[2] in names for decorator in plain)


def _function(node: Function, of_class: bool) -> Member:
    doc = ast.get_docstring(node) or ""
    result = "" if node.returns is None else f" -> {ast.unparse(node.returns)}"
    if of_class and _decorated(node, "property", "cached_property"):
        return Member(node.name, "property", result.removeprefix(" -> "), doc)
    kind: Kind = "method" if of_class else "function"
    if of_class and _decorated(node, "classmethod"):
        kind = "classmethod"
    elif of_class and _decorated(node, "staticmethod"):
        kind = "staticmethod"
    return Member(node.name, kind, f"({_arguments(node, bound=kind in ('method', 'classmethod'))}){result}", doc)


def _arguments(node: Function, bound: bool) -> str:
    """Return the parameters as written, without the first one of a method."""
    arguments = node.args
    if bound:
        before = [*arguments.posonlyargs, *arguments.args][1:]
        arguments = ast.arguments(
            posonlyargs=[],
            args=before,
            vararg=arguments.vararg,
            kwonlyargs=arguments.kwonlyargs,
            kw_defaults=arguments.kw_defaults,
            kwarg=arguments.kwarg,
            defaults=arguments.defaults[-len(before) :] if before else [],
        )
    return ast.unparse(arguments)


def _class(node: ast.ClassDef) -> Member:
    fields = tuple(
        Field(item.target.id, ast.unparse(item.annotation), _default(item.value))
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and not item.target.id.startswith("_")
    )
    made = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
    return Member(
        name=node.name,
        kind="class",
        signature=f"({_arguments(made[0], bound=True)})" if made else "",
        doc=ast.get_docstring(node) or "",
        fields=fields,
        members=tuple(_members(node.body, of_class=True)),
        bases=tuple(ast.unparse(base) for base in node.bases),
    )


def _default(value: ast.expr | None) -> str | None:
    """Return the default of a field as written, also in `dataclasses.field`; None where there is none."""
    if not (isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] == "field"):
        return None if value is None else ast.unparse(value)
    given = {keyword.arg: keyword.value for keyword in value.keywords}
    if (factory := given.get("default_factory")) is not None:
        return ast.unparse(factory.body) if isinstance(factory, ast.Lambda) else f"{ast.unparse(factory)}()"
    return ast.unparse(given["default"]) if "default" in given else None


def _data(node: ast.Assign | ast.AnnAssign, following: ast.stmt | None) -> Iterator[Member]:
    """Yield the public constants of an assignment; a string that follows it is their docstring."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    values = [node.value] * len(targets)
    if isinstance(targets[0], ast.Tuple):
        targets = targets[0].elts
        together = isinstance(node.value, ast.Tuple) and len(node.value.elts) == len(targets)
        values = (
            list(node.value.elts) if isinstance(node.value, ast.Tuple) and together else [node.value] * len(targets)
        )
    doc = ""
    if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
        doc = str(following.value.value)
    for target, value in zip(targets, values, strict=True):
        if isinstance(target, ast.Name) and not target.id.startswith("_"):
            yield Member(target.id, "data", "" if value is None else ast.unparse(value), doc)
