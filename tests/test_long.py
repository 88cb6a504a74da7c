"""Tests that take long are left out of a run of all tests, and `.ci/run` runs them as well."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.distribution import is_whole


@pytest.mark.parametrize(
    ("named", "whole"), [(["tests"], True), (["tests/core"], False), (["tests/a.py::b"], False)]
)
def test_a_named_test_runs_however_long_it_is(named: list[str], whole: bool) -> None:
    config = SimpleNamespace(args=named, getini={"testpaths": ["tests"]}.get)
    assert is_whole(config) is whole  # type: ignore[arg-type]


def test_ci_runs_the_command_of_the_readme_and_all_that_it_leaves_out() -> None:
    steps = (Path(__file__).parents[1] / ".ci/run").read_text().splitlines()
    required = steps.index("export SMTPPROXY_REQUIRE_PEERS=1")
    command = ".venv/bin/python -m pytest"
    assert {command, f"{command} -m long"} <= set(steps[required:])
