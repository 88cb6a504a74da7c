"""The corpus and schedules mutated from it are played in every run of the tests.

New ones are sought by `python -m tests.fuzz --seconds 3600`.
"""

import platform
import subprocess
import sys
from importlib.util import find_spec
from itertools import islice

import pytest

from tests.fuzz.mutations import CORPUS, corpus, mutations
from tests.fuzz.run import run
from tests.fuzz.schedule import Schedule
from tests.fuzz.trial import Trial
from tests.fuzz.verdict import judge
from tests.support.programs import unavailable

MUTATIONS, SEED = 1200, 1
PARTS = 2


def test_the_corpus_passes() -> None:
    files = sorted(CORPUS.iterdir())
    ends: dict[str, int] = {}
    messages = 0
    for file in files:
        try:
            trial = run(file.read_bytes())
        except BaseException as failed:
            failed.add_note(f"python -m tests.fuzz --play {file}")
            raise
        ends[trial.ended] = ends.get(trial.ended, 0) + 1
        messages += trial.pipeline.transaction.messages
    assert len(files) > 200
    assert messages > 20  # it is no corpus of nonsense
    assert {"quit", "client_closed", "backend_violation", "not_synchronized", "draining"} <= set(
        ends
    )


def test_a_schedule_is_the_same_when_written_and_read_again() -> None:
    for file in CORPUS.iterdir():
        schedule = Schedule.decode(file.read_bytes())
        assert Schedule.decode(schedule.encode()) == schedule


WHOLE_MESSAGE = (
    b"\xffA\xffCEHLO c\r\nMAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\n"
    b"\xffA\xffA\xffA\xffA\xffA\xffCx\r\n.\r\n"
)


@pytest.mark.parametrize(
    ("sent", "instead"),
    [
        (b"250 r6\r\n", b"250 r7\r\n"),  # the end of data is acknowledged by another reply
        (b"250 r3\r\n250 r4\r\n", b"250 r4\r\n250 r3\r\n"),  # out of order
        (b"250 r3\r\n", b""),  # one is missing
        (b"250-CHUNKING\r\n", b"250-XFROB\r\n"),  # an offer that the backend did not make
        (b"250 r3\r\n", b"250 r3\r\n250 r3\r\n"),  # one too many
    ],
)
def test_the_verdict_knows_what_is_wrong_with_replies(sent: bytes, instead: bytes) -> None:
    trial = Trial(Schedule.decode(WHOLE_MESSAGE))
    trial.play()
    judge(trial)
    assert sent in trial.sent_to_client
    trial.sent_to_client = trial.sent_to_client.replace(sent, instead)
    with pytest.raises(AssertionError):
        judge(trial)


@pytest.mark.parametrize("index", [2, 3, 4, 5])
def test_the_verdict_knows_what_is_wrong_with_what_the_backend_got(index: int) -> None:
    for change in (lambda octets: b"x" + octets, lambda octets: octets[:-3], lambda _: b""):
        trial = Trial(Schedule.decode(WHOLE_MESSAGE))
        trial.play()
        trial.server.said[index].octets = change(trial.server.said[index].octets)
        with pytest.raises(AssertionError):
            judge(trial)


@pytest.mark.parametrize("part", range(PARTS))
def test_schedules_mutated_from_the_corpus_pass(part: int) -> None:
    for octets in islice(mutations(MUTATIONS, SEED), part, None, PARTS):
        try:
            run(octets)
        except BaseException as failed:
            failed.add_note(f"the schedule: {octets!r}")
            raise


def test_these_schedules_are_the_same_each_time_and_many_are_new() -> None:
    made = list(mutations(MUTATIONS, SEED))
    assert made == list(mutations(MUTATIONS, SEED))
    assert len({*made} - {*corpus()}) > 0.9 * MUTATIONS
    assert sum(b"\0" in octets for octets in made) > 0.1 * MUTATIONS


@pytest.mark.long
def test_the_search_can_be_made() -> None:
    """Only the corpus is played, so that the result does not depend on chance."""
    if find_spec("atheris") is None:
        wheels = platform.machine() == "x86_64" and sys.version_info < (3, 14)
        (unavailable if wheels else pytest.skip)("atheris is not installed")
    fuzzer = [sys.executable, "-m", "tests.fuzz", "--seconds", "0", "--runs", "1", "--seed", "1"]
    ran = subprocess.run(fuzzer, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, (ran.stderr + ran.stdout)[-6000:]
    assert "INITED" in ran.stderr
    assert "DONE" in ran.stderr
