"""The build of a wheel: with SMTPPROXY_COMPILE=1, mypyc compiles the modules of the hot path.

Without it, and in an editable install, the wheel holds the same source as plain Python.  A compiled
wheel needs a C compiler and Python's headers to be built, and holds the source, too.
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
}
"""Package -> the modules of it that are compiled.

A class that inherits from one of another library (asyncio.Protocol, logging.Handler,
msgspec.Struct) can't be compiled, so its module stays Python.
"""


class CompileHook(BuildHookInterface):  # type: ignore[type-arg,misc,unused-ignore]  # untyped where hatchling is absent
    """Compiles, if asked to."""

    def dependencies(self) -> list[str]:
        """Return what the build needs beside hatchling."""
        return ["mypy[mypyc]>=1.18", "setuptools>=77"] if self._is_asked else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the compiled modules to the wheel; Python takes each before its source."""
        if not self._is_asked or version == "editable":
            return
        self._work = Path(tempfile.mkdtemp())
        for path in _compile(Path(self.root), self._work):
            build_data["force_include"][str(path)] = str(path.relative_to(self._work / "lib"))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was made on the way."""
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
    options = ["--config-file=", "--ignore-missing-imports", f"--cache-dir={work / 'cache'}"]
    extensions = mypycify(
        [*options, *map(str, _sources())],
        opt_level="3",
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
    """Return what is compiled, each file before those that it imports.

    To mypy all of them are one circle of imports, as they become one library, and it reads that
    from the last to the first.
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
