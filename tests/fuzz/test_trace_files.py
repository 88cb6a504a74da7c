"""Every command reads the trace files of the corpus and mutated ones, in every run.

New ones are sought by `python -m tests.fuzz --target trace --seconds 3600`.
"""

import platform
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.fuzz.trace_files import CORPUS, run_trace, trace_mutations
from tests.support.programs import unavailable

MUTATIONS, SEED, PARTS = 400, 1, 2


def test_the_corpus_is_read_correctly() -> None:
    codes = []
    for file in sorted(CORPUS.iterdir()):
        try:
            codes.append(run_trace(file.read_bytes()))
        except BaseException as failed:
            failed.add_note(f"python -m tests.fuzz --target trace --play {file}")
            raise
    assert codes.count([0, 0, 0, 0]) >= 15  # it is no corpus of nonsense
    assert [1, 1, 1, 1] in codes
    assert [3, 3, 3, 1] in codes


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_files_mutated_from_the_corpus_are_read_correctly(part: int) -> None:
    codes = []
    for octets in trace_mutations(MUTATIONS, SEED)[part::PARTS]:
        try:
            codes.append(run_trace(octets))
        except BaseException as failed:
            failed.add_note(f"the file: {octets!r}")
            raise
    assert codes.count([0, 0, 0, 0]) > MUTATIONS // PARTS // 10
    assert codes.count([3, 3, 3, 3]) > MUTATIONS // PARTS // 10


def test_these_files_are_the_same_each_time() -> None:
    assert trace_mutations(100, SEED) == trace_mutations(100, SEED)


@pytest.mark.long
def test_the_search_can_be_made() -> None:
    """Only the corpus is read, so that the result does not depend on chance."""
    if find_spec("atheris") is None:
        wheels = platform.machine() == "x86_64" and sys.version_info < (3, 14)
        (unavailable if wheels else pytest.skip)("atheris is not installed")
    argv = [sys.executable, "-m", "tests.fuzz", "--target", "trace", "--seconds", "0"]
    argv += ["--runs", "1", "--seed", "1"]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, (ran.stderr + ran.stdout)[-6000:]
    assert "INITED" in ran.stderr
    assert "DONE" in ran.stderr
