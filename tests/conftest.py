"""For all tests: properties are tried with the same examples each time."""

from tests.support import effort

__all__ = ["effort"]
