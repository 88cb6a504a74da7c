"""The memory that the product and its tests allocate, whatever libraries do in other threads."""

import gc
import tracemalloc
from pathlib import Path
from types import TracebackType
from typing import Self

import smtpproxy
import tests

OWN_FILES = (
    *(str(Path(str(each.__file__)).with_name("*")) for each in (smtpproxy, tests)),
    "<string>",  # methods that the dataclasses module makes
)
"""Files of the lines that allocate; what C code allocates counts for the line that calls it."""


class Allocated:
    """Counts what lines of `OWN_FILES` allocate in the block.

    What was allocated before the block is not traced, so that it does not count if it is freed.
    """

    def __enter__(self) -> Self:
        gc.collect()
        tracemalloc.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        tracemalloc.stop()

    def octets(self) -> int:
        """Return how much of it is in use."""
        gc.collect()
        own = [tracemalloc.Filter(True, each) for each in OWN_FILES]
        own.append(tracemalloc.Filter(False, __file__))
        return sum(each.size for each in tracemalloc.take_snapshot().filter_traces(own).traces)
