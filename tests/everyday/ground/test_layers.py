"""The layers of `layers.toml`, held against what the modules import."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import localdelay
from tests.kit.programs import python

PACKAGE = Path(localdelay.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


TABLE = tomllib.loads(Path(__file__).parents[2].joinpath("layers.toml").read_text(encoding="utf-8"))
LAYERS: list[str] = TABLE["layers"]
INSIDE: dict[str, list[str]] = TABLE["packages"]


def parts_of(path: Path) -> list[str]:
    """The dotted name of a module inside the package: `cli/plan.py` is ["cli", "plan"]."""
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute name) of every import anywhere in a module, `from x import y` as x.y.

    `localdelay.x` counts as one too, and a bare `import localdelay` is seen by what is made of it.
    """
    package = ["localdelay", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            plain = [alias.name for alias in node.names if (alias.name, alias.asname) != ("localdelay", None)]
            yield from ((node.lineno, name) for name in plain)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, node.module] if node.module else base
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "localdelay"
        ):
            yield node.lineno, f"localdelay.{node.attr}"  # after an `import localdelay`


def public_names() -> dict[str, str]:
    """The names that `localdelay` itself imports, subpackages among them, with each one's layer."""
    origins = [name.split(".") for _, name in imports(PACKAGE / "__init__.py")]
    return {names[-1]: names[1] for names in origins if names[0] == "localdelay"}


def layers_imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, layer) of every import of the library's own; the layer is "" for the library as a whole."""
    known = {parts_of(module)[0] for module in MODULES}
    for line, name in imports(path):
        package, _, rest = name.partition(".")
        if package == "localdelay":
            first = rest.partition(".")[0]
            yield line, first if first in known else public_names().get(first, "")


def test_every_module_stands_in_the_table() -> None:
    """No module and no package without a line that says what it owns, and no line without a module.

    `__main__`, which does no more than call the command, stands above them all.
    """
    assert {parts_of(path)[0] for path in MODULES} - {"__main__"} == set(LAYERS)
    assert len(LAYERS) == len(set(LAYERS)) >= 20
    for package, modules in INSIDE.items():
        there = {path.stem for path in (PACKAGE / package).glob("*.py")} - {"__init__"}
        assert there == set(modules), package


@pytest.mark.parametrize("path", MODULES, ids=lambda path: ".".join(parts_of(path)))
def test_a_module_imports_only_from_below(path: Path) -> None:
    """Each module imports only from layers below its own; inside a package likewise, where it has a table."""
    table = [*LAYERS, "__main__"]
    own, *inside = parts_of(path)
    below = set(table[: table.index(own)]) - set(TABLE["never"].get(own, []))
    if (PACKAGE / own).is_dir():
        below.add(own)
    wrong = [
        f"line {line}: {layer or 'localdelay itself'}"
        for line, layer in layers_imported(path)
        if layer not in below
    ]
    assert wrong == [], f"{own} may import from {sorted(below)}"
    if inside and own in INSIDE:
        order = INSIDE[own]
        below = {f"localdelay.{own}.{name}" for name in order[: order.index(inside[0])]}
        start = f"localdelay.{own}."
        used = {".".join(name.split(".")[:3]) for _, name in imports(path) if name.startswith(start)}
        assert used <= below, f"{own}.{inside[0]} may import from {sorted(below)}"


def test_public_names_are_traced_to_their_layer() -> None:
    """`from localdelay import x` counts as an import of the layer that x comes from."""
    names = public_names()
    assert (names["Fallback"], names["Message"], names["open_delay_queue"]) == (
        "fallback",
        "message",
        "queue",
    )
    assert set(localdelay.__all__) == set(names)


def test_modules_in_use_are_seen_as_imported() -> None:
    """The reading of imports works: these are known to be there, relative, absolute and of a module."""
    fallback, queue = PACKAGE / "fallback" / "fallback.py", PACKAGE / "queue" / "opening.py"
    assert {layer for _, layer in layers_imported(fallback)} >= {"arguments", "queue"}
    assert {layer for _, layer in layers_imported(PACKAGE / "cli" / "__init__.py")} >= {"cli"}
    assert {name for _, name in imports(queue)} >= {"localdelay.queue.workers.BringsWorkers"}


def test_only_lateness_knows_the_histogram() -> None:
    """`hdrh` is imported by one module, which checks what it returns."""
    users = {
        ".".join(parts_of(path))
        for path in MODULES
        for _, name in imports(path)
        if name.split(".")[0] == "hdrh"
    }
    assert users == {"lateness"}


@pytest.mark.parametrize("name", ["click", "rich"])
def test_only_the_commands_know_the_terminal(name: str) -> None:
    """The library itself neither parses a command line nor draws."""
    users = {parts_of(path)[0] for path in MODULES for _, used in imports(path) if used.split(".")[0] == name}
    assert users == {"cli"}


def test_pure_modules_know_no_clock() -> None:
    """Decisions are pure: these import neither Trio nor a clock nor randomness."""
    for module in ("errors", "message", "capacity", "lateness", "queue/retry", "arguments", "statistics"):
        used = {name.split(".")[0] for _, name in imports(PACKAGE / f"{module}.py")}
        assert not used & {"trio", "time", "random", "asyncio", "threading"}, module


def test_importing_the_library_imports_no_extra() -> None:
    """A service that imports `localdelay` loads no command line, no broker's client and no asyncio."""
    code = "import sys, localdelay; print(*{name.partition('.')[0] for name in sys.modules}, sep='\\n')"
    run = python("-c", code, check=True)
    loaded = set(run.stdout.split())
    assert {"localdelay", "trio", "hdrh"} <= loaded
    assert not loaded & {
        "click",
        "rich",
        "nats",
        "trio_asyncio",
        "asyncio",
        "aiohttp",
        "pytest",
        "hypothesis",
        "redis",
    }
