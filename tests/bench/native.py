"""Builds the programs of `native/` with `cc`, once for each version of their source."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "native"
PROGRAMS = ("loadgen", "strictsink", "delayrelay")
FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra")


class CannotBuildError(Exception):
    """There is no C compiler, or it failed; the text says which."""


def cache_directory() -> Path:
    """Return the directory of built programs and results, outside the project."""
    chosen = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) / "smtpproxy-bench"


def build(flags: tuple[str, ...] = FLAGS) -> Path:
    """Build what has changed since the last time.

    Returns:
        The directory of the programs.

    Raises:
        CannotBuildError: there is no `cc`, or it failed.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise CannotBuildError("a C compiler is missing: apt-get install gcc libc6-dev")
    directory = cache_directory() / f"programs-{_version(compiler, flags)}"
    directory.mkdir(parents=True, exist_ok=True)
    for program in PROGRAMS:
        if not (directory / program).exists():
            _compile([compiler, *flags], SOURCES / f"{program}.c", directory / program)
    return directory


def _version(compiler: str, flags: tuple[str, ...]) -> str:
    state = hashlib.sha256(f"{compiler} {flags}".encode())
    for file in sorted(SOURCES.iterdir()):
        state.update(file.read_bytes())
    return state.hexdigest()[:12]


def _compile(command: list[str], source: Path, program: Path) -> None:
    # under another name first: two that build at once never run half a program
    with tempfile.TemporaryDirectory(dir=program.parent) as directory:
        built = Path(directory) / program.name
        argv = [*command, "-o", str(built), str(source)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotBuildError(f"{source.name} cannot be built:\n{done.stderr}")
        built.replace(program)
