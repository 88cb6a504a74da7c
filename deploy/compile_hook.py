"""The build hook of the wheel: with SMTPPROXY_COMPILE=1, mypyc compiles the hot path.

Otherwise, and in an editable install, the modules are plain Python.  The build of a compiled wheel
needs a C compiler and Python's headers; the wheel contains the source, too.
"""

import ast
import os
import shutil
import tempfile
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMPILED: dict[str, tuple[str, ...]] = {
    "core": ("*",),
    "log": ("line_limits", "message_identifiers", "session_log", "transaction_summary"),
    "metrics": ("counters",),
    "net": (
        "admission",
        "peer",
        "rate_limit",
        "session",
        "session_upgrades",
        "shared_counters",
        "timeouts",
        "unread",
        "write_batching",
    ),
    "net/backend": ("connection_slots", "server_selection"),
    "text": ("escaping",),
    "trace": ("exchange_records", "session_recorder"),
    "worker": ("observer_fanout",),
}
"""The modules to compile, by package.

A class that inherits from a library's class (asyncio.Protocol, logging.Handler, msgspec.Struct)
cannot be compiled, so its module stays plain Python, and so does one that calls vars().
"""

COMPILER = ("mypy[mypyc]>=1.18", "setuptools>=77")
"""The packages that compile, besides a C compiler."""


class CompileHook(BuildHookInterface):  # type: ignore[type-arg,misc,unused-ignore]  # untyped where hatchling is absent
    """Compiles modules when a wheel is built with SMTPPROXY_COMPILE=1."""

    def dependencies(self) -> list[str]:
        """Return the packages that the build needs besides hatchling."""
        return list(COMPILER) if self._is_asked else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the compiled modules to the wheel; Python prefers them to the source."""
        if not self._is_asked or version == "editable":
            return
        self._work = Path(tempfile.mkdtemp())
        for path in _compile(Path(self.root), self._work):
            build_data["force_include"][str(path)] = str(path.relative_to(self._work / "lib"))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the temporary files."""
        del version, build_data, artifact_path
        if hasattr(self, "_work"):
            shutil.rmtree(self._work)

    @property
    def _is_asked(self) -> bool:
        return os.environ.get("SMTPPROXY_COMPILE") == "1"


def _compile(root: Path, work: Path) -> list[Path]:
    """Compile to extension modules below `work`/lib, and return them."""
    from mypyc.build import mypycify
    from setuptools import Distribution

    os.chdir(root)
    # The packages that smtpproxy needs are not there when it is built; mypy in CI sees them.
    types = ["--ignore-missing-imports", "--follow-imports=silent"]
    options = ["--config-file=", *types, f"--cache-dir={work / 'cache'}"]
    extensions = mypycify(
        [*options, *map(str, _sources())],
        opt_level="2",
        debug_level="0",
        group_name="smtpproxy",
        target_dir=str(work / "c"),
    )
    command = Distribution({"name": "smtpproxy", "ext_modules": extensions}).get_command_obj(
        "build_ext"
    )
    command.build_lib, command.build_temp = str(work / "lib"), str(work / "objects")
    command.ensure_finalized()
    command.run()
    return sorted((work / "lib").rglob("*.so"))


def _sources() -> list[Path]:
    """Return the files to compile, each before those that it imports.

    The modules become one library, so mypy treats them as one import cycle, and reads the files of
    a cycle from the last to the first.
    """
    paths = [
        path
        for package, names in COMPILED.items()
        for name in names
        for path in Path("smtpproxy", package).glob(f"{name}.py")
        if path.stem != "__init__"
    ]
    modules = {".".join(path.with_suffix("").parts): path for path in sorted(paths)}
    imported = {name: _imports(path) & modules.keys() for name, path in modules.items()}
    return [modules[name] for name in TopologicalSorter(imported).static_order()][::-1]


def _imports(source: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found
