"""Tests and the compiled core: what can be tested only on plain Python, and what needs care."""

from types import GetSetDescriptorType, MemberDescriptorType

import pytest

from smtpproxy import is_compiled

only_pure = pytest.mark.skipif(
    is_compiled(), reason="changes names of a module, which compiled code does not look up"
)
"""Marks a test that is not valid for compiled code."""


def attributes_of(of: type) -> list[str]:
    """Return the names in a class's slots; a compiled class has no __slots__."""
    kinds = (MemberDescriptorType, GetSetDescriptorType)
    return [name for name, each in vars(of).items() if isinstance(each, kinds)]
