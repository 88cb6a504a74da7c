"""A build says whether its hot path is compiled, and the compiled run tests the wheel."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import smtpproxy
from smtpproxy import is_compiled
from smtpproxy.metrics.exposition import Exposition
from smtpproxy.metrics.snapshot import MetricsSnapshot
from tests.support.compiled import compile_hook
from tests.support.program import SMTPPROXY


def hot_path() -> list[str]:
    """Return the names of the modules that the build hook compiles."""
    package = Path(smtpproxy.__file__).parent
    found = [
        file.relative_to(package.parent).with_suffix("").parts
        for directory, names in compile_hook().COMPILED.items()
        for name in names
        for file in sorted((package / directory).glob(f"{name}.py"))
        if file.stem != "__init__"
    ]
    return [".".join(parts) for parts in found]


@pytest.mark.parametrize("name", hot_path())
def test_each_module_of_the_hot_path_is_what_the_build_says(name: str) -> None:
    file = str(importlib.import_module(name).__file__)
    assert file.endswith(".so" if is_compiled() else ".py")


def test_the_metric_says_so() -> None:
    text = Exposition().render(MetricsSnapshot(), "mx1").decode()
    assert f'smtpproxy_build_info{{compiled="{"yes" if is_compiled() else "no"}",' in text


def test_the_program_that_tests_start_is_the_wheel_where_that_is_required(tmp_path: Path) -> None:
    """`.ci/run-compiled` requires it; the source tree must not come before the wheel."""
    required = os.environ.get("SMTPPROXY_REQUIRE_COMPILED") == "1"
    for directory in (Path.cwd(), tmp_path):
        argv = [*SMTPPROXY, "--version"]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=directory)
        assert done.stdout.endswith(", compiled\n" if required else "compiled\n")
    if required:
        assert is_compiled()
        assert Path(smtpproxy.__file__).is_relative_to(sys.prefix)
