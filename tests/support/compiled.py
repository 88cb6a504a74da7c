"""Tests and the compiled core: what can be tested only on plain Python, and what needs care."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from smtpproxy import is_compiled

only_pure = pytest.mark.skipif(
    is_compiled(), reason="changes names of a module, which compiled code does not look up"
)
"""Marks a test that is not valid for compiled code."""


def attributes_of(of: type) -> list[str]:
    """Return the names in a class's slots; a compiled class keeps them under another name."""
    return list(vars(of).get("__slots__") or vars(of)["__mypyc_attrs__"])


def compile_hook() -> ModuleType:
    """Return the build hook as a module."""
    file = Path(__file__).parents[2] / "deploy/compile_hook.py"
    spec = importlib.util.spec_from_file_location("compile_hook", file)
    assert spec is not None
    assert spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    return hook
