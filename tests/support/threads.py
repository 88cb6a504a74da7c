"""The threads of this process."""

import threading
from collections.abc import Set as AbstractSet
from time import monotonic

END_S = 10.0
"""How long a thread that was asked to end may take, on a busy machine."""
TAP = "tap"
"""The name of threads in front of an MTA that several files share; they wait for connections."""


def left_of(before: AbstractSet[threading.Thread]) -> list[str]:
    """Wait for the end of the threads that began since, and return the names of those that stay.

    Args:
        before: The threads that may stay.
    """
    until = monotonic() + END_S
    began = [each for each in threading.enumerate() if each not in before and each.name != TAP]
    for each in began:
        each.join(max(0.0, until - monotonic()))
    return [each.name for each in began if each.is_alive()]
