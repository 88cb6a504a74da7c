"""One execution: a schedule is played, checked, and played again in single octets."""

from smtpproxy.core import replies
from tests.fuzz.schedule import SMALL_QUEUE, Schedule
from tests.fuzz.trial import Trial
from tests.fuzz.verdict import judge


def run(octets: bytes) -> Trial:
    """Play the schedule in these octets; fail if anything is wrong."""
    schedule = Schedule.decode(octets)
    trial = _play(schedule)
    if not schedule.letters & SMALL_QUEUE:  # what waits outside depends on how it is cut
        _compare(trial, _play(schedule, octet_by_octet=True))
    return trial


def _play(schedule: Schedule, *, octet_by_octet: bool = False) -> Trial:
    trial = Trial(schedule, octet_by_octet=octet_by_octet)
    trial.play()
    judge(trial)
    trial.finish()
    return trial


def _compare(whole: Trial, cut: Trial) -> None:
    """How octets are cut must not matter, except for octets sent before a reply.

    Octets after a guarded command are refused if they came before its reply; cut up, some may
    have come after it.  Then the backend got the same up to that command, or up to a drain
    before it.
    """
    said, said_cut = whole.server.said, cut.server.said
    ran_ahead = _ran_ahead(whole) or _ran_ahead(cut)
    drained = cut.ended == "draining"  # between two segments: of smaller ones, sooner
    if ran_ahead:
        said_cut = said_cut[: len(said)]
    if drained:
        said = said[: len(said_cut)]
    if drained and not ran_ahead:
        draining = replies.DRAINING % cut.pipeline.policy.hostname
        assert whole.sent_to_client.startswith(cut.sent_to_client.removesuffix(draining))
    elif not ran_ahead:
        assert cut.sent_to_client == whole.sent_to_client
        assert cut.ended == whole.ended
        assert cut.pipeline.transaction.messages == whole.pipeline.transaction.messages
    assert [each.kind for each in said] == [each.kind for each in said_cut]
    for one, other in zip(said, said_cut, strict=True):
        if ran_ahead and one.kind == "content" and not (one.whole and other.whole):
            # Between chunks commands may be refused, and so the content may go on.
            assert one.octets.startswith(other.octets) or other.octets.startswith(one.octets)
            continue
        assert (one.octets, one.payload, one.whole) == (other.octets, other.payload, other.whole)


def _ran_ahead(trial: Trial) -> bool:
    return any(
        e.problem is not None and e.problem.kind == "not_synchronized" for e in trial.observed
    )
