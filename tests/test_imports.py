"""Imports point down only."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "forebay"
ENGINE = ROOT / "engine" / "src" / "forebay_engine"

MAY_IMPORT: dict[str, set[str]] = {
    "config": set(),
    "upstreams": {"config"},
    "store": {"config"},
    "limits": {"_core"},
    "metering": {"store", "_core"},
    "gateway": {"_core", "config", "store", "upstreams", "telemetry"},
    "http": {"gateway", "config", "_core"},
    "grpc": {"gateway", "config", "_core"},
    "client": {"grpc"},
    "telemetry": {"config", "__version__"},
}
"""Per folder of the package, what of the package it may import besides itself."""

ADMIN = PACKAGE / "http" / "admin"
"""Of the front ends, the admin API alone may reach the database."""
GRPC_ADMIN = {PACKAGE / "grpc" / name for name in ("admin.py", "admin_messages.py", "server.py")}
"""The admin API over gRPC does the operations of that over HTTP."""

TOP = {
    "__init__.py",
    "answering.py",
    "books.py",
    "cli",
    "dev.py",
    "notify.py",
    "ready.py",
    "reload.py",
    "serve.py",
    "start.py",
    "workers",
}
"""These wire all the others together and may import anything. Nothing may import them."""


def imported(path: Path, package: str) -> Iterator[tuple[int, str]]:
    """Every module of `package` that a file imports, wherever in the file: (line, dotted name)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            base = node.module or ""
            # `from forebay import serve` imports a module, not a name of the package.
            names = [f"{base}.{a.name}" for a in node.names] if base == package else [base]
        else:
            continue
        for name in names:
            if name == package or name.startswith(package + "."):
                yield node.lineno, name


def part(name: str) -> str:
    """`forebay.store.keys` as `store`."""
    return name.split(".")[1] if "." in name else ""


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_every_folder_has_its_rule() -> None:
    ignored = {"__pycache__", "_core.pyi", "py.typed"}
    there = {e.name for e in PACKAGE.iterdir() if e.suffix != ".so"} - ignored
    assert there == set(MAY_IMPORT) | TOP


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0]
    if own in TOP:
        return
    allowed = MAY_IMPORT[own] | {own}
    if path.is_relative_to(ADMIN):
        allowed |= {"store", "metering"}
    if path in GRPC_ADMIN:
        allowed |= {"http", "store"}
    for line, name in imported(path, "forebay"):
        assert part(name) in allowed, f"{path}:{line}: {own} may not import {name}"


def test_the_engine_and_the_gateway_meet_on_the_wire_only() -> None:
    for path in ENGINE.rglob("*.py"):
        assert not list(imported(path, "forebay")), path
    for path in files():
        assert not list(imported(path, "forebay_engine")), path


def test_the_layers_have_no_cycle() -> None:
    order: list[str] = []
    left = {name: needs - {"_core", "__version__"} for name, needs in MAY_IMPORT.items()}
    while left:
        free = [name for name, needs in left.items() if needs <= set(order)]
        assert free, f"a cycle among {sorted(left)}"
        for name in free:
            order.append(name)
            del left[name]


def test_python_enters_rust_through_one_crate() -> None:
    for path in (ROOT / "rust" / "core" / "src").rglob("*.rs"):
        assert "pyo3" not in path.read_text(), path
