"""How a run of all tests is distributed over processes (pytest-xdist).

A file is one piece of work, so that what its tests share is made once.  The tests in front of one
MTA (the fixture `stage`) are a piece as well, so that it is started once for all their files.
Pieces are taken in the order of `FIRST`: no long one begins when the others end.
"""

import os

import pytest
from xdist.scheduler import LoadGroupScheduling

FIRST = ("deploy", "interop", "supervisor", "bounds", "chaos", "core")
"""The directories whose pieces take longest; others follow."""


class PiecesOfWork(LoadGroupScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives each process a file, or a group of `xdist_group`, at a time."""

    def _split_scope(self, nodeid: str) -> str:
        return str(super()._split_scope(nodeid)).partition("::")[0]


def processes(config: pytest.Config) -> int:
    """Return the number of processes; 0 is this one, as for tests that are named or show output.

    Most tests wait for sockets and programs, so there are two processes for each CPU.
    """
    processes = 2 * (os.cpu_count() or 1)
    return processes if is_whole(config) and config.option.capture != "no" else 0


def is_whole(config: pytest.Config) -> bool:
    """Return whether no test, file or directory is named."""
    return bool(config.args == config.getini("testpaths"))


def arrange(items: list[pytest.Item]) -> None:
    """Put the tests of long pieces first, and mark those in front of one MTA as a group."""
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if "stage" in parameters:
            item.add_marker(pytest.mark.xdist_group(f"in front of {parameters['stage']}"))
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    directory = item.path.parent.name
    return FIRST.index(directory) if directory in FIRST else len(FIRST)
