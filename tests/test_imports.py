"""Imports point one way: cli -> supervisor, worker -> app -> {admin, observe, net} -> core."""

import ast
import sys
from pathlib import Path

import pytest

import smtpproxy

ROOT = Path(smtpproxy.__file__).parent

SETTINGS = {
    "address",
    "certificates",
    "config",
    "contradictions",
    "directories",
    "hostnames",
    "places",
    "problems",
    "settings",
    "trust",
}
"""Files at the top that read the settings: nothing of the proxy but each other, and core."""

ALLOWED = {
    "core": set(),
    "text": set(),
    "terminal": {"text"},
    "net": {"core", "address"},
    "observe": {"core", "address", "text"},
    "admin": {"core", "address", "figures"},
    "settings": {"core", "text"},
    "figures": set(),
    "control": {"settings", "figures"},
    "wiring": {"settings", "net", "core"},
    "usage": {"figures"},
    "app": {"wiring", "settings", "admin", "observe", "net", "core", "figures", "usage"},
    "demo": {"app", "settings", "observe", "picture", "terminal"},
    "probe": {"settings", "core", "picture", "terminal"},
    "link": {"control", "figures", "net"},
    "worker": {"app", "link", "control", "net", "observe"},
    "supervisor": {"wiring", "control", "figures", "settings", "admin", "observe", "net"},
    "picture": {"text"},
    "tracing": {"core", "address", "observe", "picture", "terminal", "text"},
    "data": set(),
    "cli": {"data", "supervisor", "settings", "demo", "observe", "probe", "tracing", "terminal"},
    "__main__": {"cli"},
    "": set(),
}
"""Part -> the parts that it may import beside itself and the version; "address" is one file."""

FORBIDDEN_IN_CORE = frozenset(
    ("asyncio", "socket", "ssl", "logging", "time", "threading", "select", "selectors")
)


def _part(module: str) -> str:
    """Return the part that a module of the package belongs to."""
    first = module.removeprefix("smtpproxy").removeprefix(".").split(".")[0]
    return "settings" if first in SETTINGS else first


def _modules() -> dict[str, Path]:
    files = sorted(ROOT.rglob("*.py"))
    names = {".".join(file.relative_to(ROOT.parent).with_suffix("").parts): file for file in files}
    return {name.removesuffix(".__init__"): file for name, file in names.items()}


MODULES = _modules()


def _imported(source: str) -> set[str]:
    """Return all modules that a source imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            names = {f"{module}.{alias.name}" for alias in node.names}
            found |= (names & MODULES.keys()) or {module}
    return found


def _wrong(module: str, source: str) -> list[str]:
    """Return what a module imports and may not."""
    part = _part(module)
    wrong = []
    for target in sorted(_imported(source)):
        top = target.split(".")[0]
        if top == "smtpproxy":
            allowed = ALLOWED[part] | {part, ""}
            is_address = target == "smtpproxy.config.address" and "address" in allowed
            wrong += [] if is_address or _part(target) in allowed else [target]
        elif part == "core" and (top in FORBIDDEN_IN_CORE or top not in sys.stdlib_module_names):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_what_its_part_may(module: str) -> None:
    assert _wrong(module, MODULES[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("smtpproxy.core.lines", "import asyncio", ["asyncio"]),
        ("smtpproxy.core.lines", "def f():\n    from time import monotonic", ["time"]),
        ("smtpproxy.core.lines", "import msgspec, re", ["msgspec"]),
        ("smtpproxy.core.lines", "from smtpproxy.net import session", ["smtpproxy.net.session"]),
        ("smtpproxy.core.lines", "from smtpproxy.core import replies", []),
        ("smtpproxy.net.session", "import smtpproxy.log.log", ["smtpproxy.log.log"]),
        ("smtpproxy.net.session", "import socket, smtpproxy.core.lines", []),
        (
            "smtpproxy.net.session",
            "from smtpproxy.config import loader",
            ["smtpproxy.config.loader"],
        ),
        ("smtpproxy.log.log", "from smtpproxy.net.session import x", ["smtpproxy.net.session"]),
        (
            "smtpproxy.config.loader",
            "from smtpproxy.worker.app import App",
            ["smtpproxy.worker.app"],
        ),
        ("smtpproxy.worker.app", "from smtpproxy.cli import main", ["smtpproxy.cli"]),
        (
            "smtpproxy.supervisor.worker_group",
            "import smtpproxy.worker.main",
            ["smtpproxy.worker.main"],
        ),
        ("smtpproxy.demo.demo_run", "from smtpproxy.net import session", ["smtpproxy.net.session"]),
        ("smtpproxy.demo.demo_run", "from smtpproxy.worker.app import App", []),
        ("smtpproxy.cli", "from smtpproxy import __version__", []),
    ],
)
def test_wrong_arrow_is_noticed(module: str, source: str, wrong: list[str]) -> None:
    assert _wrong(module, source) == wrong


def test_every_part_of_the_package_has_its_arrows() -> None:
    assert {_part(module) for module in MODULES} <= ALLOWED.keys()


def _circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import one another, each sorted."""
    reached: dict[str, set[str]] = {}
    for module in imports:
        found: set[str] = set()
        waiting = [*imports[module]]
        while waiting:
            target = waiting.pop()
            if target in imports and target not in found:
                found.add(target)
                waiting += imports[target]
        reached[module] = found
    circles = {
        tuple(sorted(other for other in reached[module] if module in reached[other]))
        for module in imports
        if module in reached[module]
    }
    return sorted(map(list, circles))


def test_no_modules_import_one_another() -> None:
    imports = {module: _imported(path.read_text()) for module, path in MODULES.items()}
    circles = _circles(imports)
    assert [each for each in circles if not all(".net." in module for module in each)] == []


@pytest.mark.parametrize(
    ("imports", "circles"),
    [
        ({"a": {"b"}, "b": {"c", "sys"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"a"}}, [["a", "b"]]),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}}, [["b", "c"], ["d"]]),
    ],
)
def test_circle_is_noticed(imports: dict[str, set[str]], circles: list[list[str]]) -> None:
    assert _circles(imports) == circles
