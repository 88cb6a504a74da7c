"""Imports point one way, and never in a circle: see the map, smtpproxy/README.md."""

import ast
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

import smtpproxy

ROOT = Path(smtpproxy.__file__).parent

ADDRESS = ("config.address", "config.own_addresses")
"""The files of the settings that those below them may read: addresses are plain values."""

ALLOWED = {
    "core": set(),
    "tls": set(),
    "text": set(),
    "data": set(),
    "timeline": {"text"},
    "config": {"core", "tls", "text"},
    "net": {"core", "text", "tls", *ADDRESS},
    "metrics": {"core"},
    "log": {"core", "text"},
    "trace": {"core", "log", "text", "timeline", *ADDRESS},
    "otel": {"core", "log", "text"},
    "admin": {"core", "log", "metrics", "text", "trace"},
    "worker": {"core", "tls", "config", "net", "metrics", "log", "trace", "otel", "admin"},
    "cluster": {"config", "log", "net"},
    "control_socket": {"admin", "text", "trace", *ADDRESS},
    "supervisor": {
        *("config", "net", "metrics", "log", "trace", "admin", "worker", "control_socket"),
        "cluster",
    },
    "probe": {"core", "tls", "config", "text", "timeline"},
    "demo": {"config", "log", "text", "timeline", "worker", "admin", "metrics", "net"},
    "cli": {
        *("config", "control_socket", "data", "demo", "log", "probe", "supervisor", "text", "trace")
    },
    "__main__": {"cli", "control_socket"},
    "": set(),
}
"""Package -> what it may import beside itself and the version."""

FORBIDDEN_IN_CORE = frozenset(
    ("asyncio", "socket", "ssl", "logging", "time", "threading", "select", "selectors")
)


def _package(module: str) -> str:
    """Return the package that a module belongs to; empty for smtpproxy itself."""
    return module.removeprefix("smtpproxy").removeprefix(".").split(".")[0]


def _modules() -> dict[str, Path]:
    files = sorted(ROOT.rglob("*.py"))
    names = {".".join(file.relative_to(ROOT.parent).with_suffix("").parts): file for file in files}
    return {name.removesuffix(".__init__"): file for name, file in names.items()}


MODULES = _modules()


def _imported(source: str) -> set[str]:
    """Return all modules that a source imports, wherever in it, for types only or not."""
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
    package = _package(module)
    wrong = []
    for target in sorted(_imported(source)):
        top = target.split(".")[0]
        if top == "smtpproxy":
            allowed = ALLOWED[package] | {package, ""}
            is_address = target.removeprefix("smtpproxy.") in allowed & {*ADDRESS}
            wrong += [] if is_address or _package(target) in allowed else [target]
        elif package == "core" and (top in FORBIDDEN_IN_CORE or top not in sys.stdlib_module_names):
            wrong.append(target)
    return wrong


def _circles(arrows: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return the groups of files of which each imports, by way of others, each other one."""
    reached: dict[str, set[str]] = {}
    for file in arrows:
        seen: set[str] = set()
        waiting = [file]
        while waiting:
            for target in set(arrows.get(waiting.pop(), ())) - seen:
                seen.add(target)
                waiting.append(target)
        reached[file] = seen
    circles = {
        tuple(sorted(other for other in seen if file in reached.get(other, ())))
        for file, seen in reached.items()
        if file in seen
    }
    return [list(circle) for circle in sorted(circles)]


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_what_its_package_may(module: str) -> None:
    assert _wrong(module, MODULES[module].read_text()) == []


def test_no_circle_of_imports_between_files() -> None:
    """Neither at run time nor for types only: what needs another's type has a Protocol for it."""
    arrows = {
        module: (_imported(file.read_text()) & MODULES.keys()) - {module}
        for module, file in MODULES.items()
    }
    assert _circles(arrows) == []


@pytest.mark.parametrize(
    ("arrows", "circles"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"a"}, "c": {"a"}}, [["a", "b"]]),
        ({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"d"}}, [["a", "b", "c"], ["d"]]),
    ],
)
def test_circle_is_noticed(arrows: dict[str, set[str]], circles: list[list[str]]) -> None:
    assert _circles(arrows) == circles


def test_no_word_names_two_files() -> None:
    names = [file.stem for file in MODULES.values() if not file.stem.startswith("__")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_the_map_shows_each_package_and_names_no_file_that_is_gone() -> None:
    text = (ROOT / "README.md").read_text()
    packages = {file.parent.relative_to(ROOT) for file in ROOT.rglob("__init__.py")} - {Path()}
    assert [str(each) for each in sorted(packages) if f"| `{each}/` |" not in text] == []
    named = re.findall(r"`([a-z_/]+\.py)`", text)
    assert len(named) > 20
    candidates = (ROOT, ROOT.parent)
    assert [name for name in named if not any((each / name).exists() for each in candidates)] == []


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
        ("smtpproxy.net.session", "from smtpproxy.config.address import Address", []),
        ("smtpproxy.log.log", "from smtpproxy.net.session import x", ["smtpproxy.net.session"]),
        ("smtpproxy.log.log", "from smtpproxy.trace import records", ["smtpproxy.trace.records"]),
        (
            "smtpproxy.tls.contexts",
            "from smtpproxy.config import schema",
            ["smtpproxy.config.schema"],
        ),
        ("smtpproxy.worker.app", "from smtpproxy.cli import main", ["smtpproxy.cli"]),
        ("smtpproxy.worker.main", "import smtpproxy.supervisor", ["smtpproxy.supervisor"]),
        (
            "smtpproxy.demo.demo_run",
            "from smtpproxy.probe import findings",
            ["smtpproxy.probe.findings"],
        ),
        ("smtpproxy.demo.demo_run", "from smtpproxy.worker.app import App", []),
        ("smtpproxy.cli", "from smtpproxy import __version__", []),
    ],
)
def test_wrong_arrow_is_noticed(module: str, source: str, wrong: list[str]) -> None:
    assert _wrong(module, source) == wrong


def test_every_package_has_its_arrows() -> None:
    assert {_package(module) for module in MODULES} <= ALLOWED.keys()
