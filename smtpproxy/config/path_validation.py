"""Checks of the directories that the settings name."""

import os
from collections.abc import Iterator
from pathlib import Path as FilePath

from smtpproxy.config.decoding import BAD, KeyProblem
from smtpproxy.config.schema import Settings


def problems(settings: Settings) -> Iterator[KeyProblem]:
    """Yield unusable directories: the key path in the settings, and the problem."""
    trace = settings.trace
    if trace is BAD or BAD in (trace.directory, trace.when) or trace.when == "off":
        return
    why = why_not(trace.directory) if trace.directory else ""
    if why:
        yield ("trace", "directory"), why


def why_not(directory: str) -> str:
    """Return why no file can be created in a directory, which may not exist yet; else empty."""
    there = FilePath(directory).absolute()
    while not os.access(there, os.F_OK):
        there = there.parent
    if not there.is_dir():
        return f"cannot be created: {there} is not a directory"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"nothing can be written in {there}: permission denied"
    return ""
