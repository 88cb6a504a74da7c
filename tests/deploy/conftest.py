"""What is made once: the wheels of all that smtpproxy needs, and the Debian package."""

import hashlib
import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.deploy.debian import cache_directory, locked
from tests.support.compiled import compile_hook
from tests.support.programs import command

SOURCE = Path(__file__).parents[2]


CLUSTER = """\
[listeners.smtp]
address = "127.0.0.1:2525"
[backends.mta]
servers = ["127.0.0.1:25"]
[cluster]
url = "redis://127.0.0.1:6379"
replicas = 2
"""
"""Settings that need the packages of an extra."""


def compile_asked() -> str:
    """Return SMTPPROXY_COMPILE: 1 to compile what is built, which takes half a minute; else 0."""
    return os.environ.get("SMTPPROXY_COMPILE", "0")


@pytest.fixture(scope="session")
def wheels() -> Path:
    """A directory of wheels for Debian's own Python: what smtpproxy needs, and its build system.

    It is kept in the cache until the requirements change, so that installing asks no index.
    """
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    wanted += project["project"]["optional-dependencies"]["cluster"]
    if compile_asked() == "1":
        wanted += compile_hook().COMPILER
    digest = hashlib.sha256("\n".join(wanted).encode()).hexdigest()
    cache = cache_directory()
    directory = cache / f"wheels-{digest[:16]}"
    with locked(cache):
        if not directory.exists():
            _build_wheels(directory, wanted)
    return directory


def _build_wheels(directory: Path, wanted: list[str]) -> None:
    new = directory.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    tools = directory.with_suffix(".tools")
    python = command("/usr/bin/python3", "python3-venv")
    subprocess.run([python, "-m", "venv", tools], check=True, timeout=120)
    pip = [tools / "bin/pip", "wheel", "--quiet", "--wheel-dir", new]
    subprocess.run([*pip, *wanted], check=True, timeout=300)
    shutil.rmtree(tools)
    new.rename(directory)


@pytest.fixture(scope="session")
def package(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Debian package of this tree; compressed less than by default, which takes less time."""
    command("dpkg-deb", "dpkg")
    directory = tmp_path_factory.mktemp("package")
    faster = {"DPKG_DEB_COMPRESSOR_TYPE": "gzip", "DPKG_DEB_COMPRESSOR_LEVEL": "1"}
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    compiled = {"SMTPPROXY_COMPILE": compile_asked()}  # usually not: .ci/run-compiled tests that
    subprocess.run(
        [SOURCE / "deploy/debian/build", directory],
        env={**os.environ, **faster, **offline, **compiled},
        check=True,
        timeout=300,
    )
    (built,) = directory.iterdir()
    return built
