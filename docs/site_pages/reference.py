"""The reference of Python: a page per package, with its entry points first, and then its modules."""

from collections.abc import Iterator

from site_pages.docstrings import entries, escaped, markdown, summary, without_entries
from site_pages.names import PACKAGES, Field, Member, Module, defined_in, modules
from site_pages.tables import code, table

FOLDER = "docs/reference/api"
LONGEST_VALUE = 160
"""Letters of a constant's value that are shown."""


def packages() -> list[str]:
    """Return the packages that have a page: folders with a public name in them, or with subpackages."""
    return [name for name, module in modules().items() if module.is_package]


def page_of(name: str) -> str:
    """Return the page that documents a module, without its suffix, from the root of the repository."""
    package = name if modules()[name].is_package else name.rpartition(".")[0]
    return f"{FOLDER}/{package}"


def pages() -> dict[str, str]:
    """Return the Markdown of every page of the reference, by its path without suffix."""
    return {page_of(name): "\n\n".join(_page(modules()[name])) + "\n" for name in packages()}


def packages_table() -> str:
    """Return the packages with their first sentence, and the hidden contents of their pages."""
    rows = [module for name, module in modules().items() if name in PACKAGES or name.rpartition(".")[0] in PACKAGES]
    shown = [module for module in rows if module.is_package or module.name in PACKAGES]
    pages_ = "\n".join(f"/{page_of(name)}" for name in PACKAGES)
    return f"{table(('package', ''), map(_row, shown))}\n\n```{{toctree}}\n:hidden:\n\n{pages_}\n```"


def children(name: str) -> list[Module]:
    """Return the modules directly in a package."""
    return [module for module in modules().values() if module.name.rpartition(".")[0] == name]


def _page(package: Module) -> Iterator[str]:
    inside = children(package.name)
    yield f"# {package.name}"
    yield markdown(package.doc)
    if package.entry_points:
        yield f"Import these from `{package.name}`:"
        yield table(("name", ""), _entries(package))
    below = [module for module in inside if module.is_package]
    if below:
        yield table(("package", ""), map(_row, below))
        yield "\n".join(["```{toctree}", ":hidden:", "", *(f"/{page_of(module.name)}" for module in below), "```"])
    yield from _members(package)
    for module in inside:
        if not module.is_package:
            yield f"## {module.name}"
            # A package may export a function under the name of the module that defines it.
            hidden = (
                ":no-index:\n"
                if any(member.name == module.name.rpartition(".")[2] for member in package.members)
                else ""
            )
            yield f":::{{py:module}} {module.name}\n{hidden}:::"
            yield markdown(module.doc)
            yield from _members(module)


def _row(module: Module) -> tuple[str, str]:
    return f"[{module.name}](/{page_of(module.name)}.md)", summary(module.doc)


def _entries(package: Module) -> Iterator[tuple[str, str]]:
    for name in package.entry_points:
        target = defined_in(package, name)
        member = None if target is None else _member(target)
        link = f"`{name}`" if target is None else f"{{py:obj}}`{name} <{target}>`"
        yield link, summary(member.doc) if member else ""


def _member(full: str) -> Member:
    module, _, name = full.rpartition(".")
    return next(member for member in modules()[module].members if member.name == name)


def _members(module: Module) -> Iterator[str]:
    for member in module.members:
        yield _directive(member, module.name)


def _directive(member: Member, module: str, of_class: str = "", depth: int = 6) -> str:
    """Return a name as a directive of Sphinx's domain of Python, with what it contains."""
    colons = ":" * depth
    name = f"{of_class}{member.name}"
    options = [f":module: {module}"]
    match member.kind:
        case "data":
            kind, shown = "data", name
        case "property":
            kind, shown = "property", name
            options += [f":type: {member.signature}"] if member.signature else []
        case "class":
            kind, shown = "class", f"{name}{member.signature}"
        case "function":
            kind, shown = "function", f"{name}{member.signature}"
        case kind_of_method:
            kind, shown = "method", f"{name}{member.signature}"
            options += [] if kind_of_method == "method" else [f":{kind_of_method}:"]
    bases = ", ".join(f"`{base}`" for base in member.bases)
    value = f"= {code(_shortened(member.signature))}" if member.kind == "data" and member.signature else ""
    body = [f"Bases: {bases}" if bases else value, markdown(without_entries(member.doc, _names(member)))]
    if member.fields:
        body.append(table(("field", "type", "default", "meaning"), _fields(member)))
    body += [_directive(part, module, f"{name}.", depth - 1) for part in member.members]
    lines = [f"{colons}{{py:{kind}}} {' '.join(shown.split())}", *options, ""]
    return "\n".join(lines) + "\n" + "\n\n".join(part for part in body if part) + f"\n{colons}"


def _fields(member: Member) -> Iterator[tuple[str, str, str, str]]:
    meanings = entries(member.doc, _names(member))
    for field in member.fields:
        default = "" if field.default is None else code(_shortened(field.default))
        yield code(field.name), code(_type(field)), default, escaped(meanings.get(field.name, ""))


def _names(member: Member) -> list[str]:
    return [field.name for field in member.fields]


def _type(field: Field) -> str:
    return field.annotation.strip("'\"")


def _shortened(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= LONGEST_VALUE else flat[: LONGEST_VALUE - 4] + " ..."
