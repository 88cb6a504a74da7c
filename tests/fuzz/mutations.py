"""Schedules mutated from the corpus: the same in every run, whatever the core does.

The fuzzer (`python -m tests.fuzz`) is led by what its schedules reach in the core, so that each
change of the core leads it elsewhere.  These are led by nothing: a new failure is a change's.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tests.fuzz.schedule import CLIENT, END

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
WORDS = HERE / "words"
LONGEST = 1500
"""Octets of a schedule."""
TRICKY = b"\r\n.\0\xffCAB05 "


def corpus() -> list[bytes]:
    """Return the schedules of the corpus, in a fixed order."""
    return [file.read_bytes() for file in sorted(CORPUS.iterdir())]


def words() -> list[bytes]:
    """Return the fuzzer's dictionary of parts of schedules."""
    lines = WORDS.read_text().splitlines()
    return [ast.literal_eval("b" + line) for line in lines if line.startswith('"')]


def mutations(count: int, seed: int) -> Iterator[bytes]:
    """Yield this many schedules."""
    chance, schedules, dictionary = Random(seed), corpus(), words()
    for _ in range(count):
        octets = chance.choice(schedules)
        for _ in range(chance.randint(1, 4)):
            octets = _mutated(octets, chance, schedules, dictionary)
        yield octets[:LONGEST]


def _mutated(
    octets: bytes, chance: Random, schedules: list[bytes], dictionary: list[bytes]
) -> bytes:
    """Return octets with one thing changed in them."""
    at = chance.randint(0, len(octets))
    until = min(len(octets), at + chance.choice((1, 1, 2, 4, 16)))
    other = chance.choice(schedules)
    new = chance.choice(
        (
            END + CLIENT.encode(),  # what the client sends is cut here
            chance.choice(dictionary),
            bytes([chance.choice(TRICKY)]),
            bytes([chance.randrange(256)]),
            octets[at:until] * 2,
            other[chance.randint(0, len(other)) :],
            b"",
        )
    )
    return octets[:at] + new + octets[chance.choice((at, until)) :]
