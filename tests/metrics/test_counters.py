"""What sessions count, and under which labels."""

from smtpproxy.core.policy import SessionPolicy
from smtpproxy.metrics import definitions
from smtpproxy.metrics.counters import MetricCounters
from smtpproxy.metrics.definitions import DEFINITIONS, LABELS, Definition
from smtpproxy.metrics.snapshot import MetricsSnapshot, Number
from tests.support.observed_session import Watched

NAMES = ("smtp", "old")
"""The listener and the backend of a watched session."""


def numbers(counters: MetricCounters, metric: Definition) -> dict[tuple[str, ...], Number]:
    """Return the numbers of a metric by the values of its labels."""
    snapshot = MetricsSnapshot()
    counters.put_into(snapshot)
    return {each.labels: each.value for each in snapshot.samples_of(metric)}


def test_a_session_counts_for_its_listener_and_backend() -> None:
    counters = MetricCounters()
    session = Watched(counters)
    session.relay("text")
    assert numbers(counters, definitions.SESSIONS) == {NAMES: 1}
    session.close("quit")
    assert numbers(counters, definitions.SESSIONS) == {NAMES: 0}
    assert numbers(counters, definitions.SESSIONS_CLOSED) == {(*NAMES, "quit"): 1}
    assert numbers(counters, definitions.MESSAGES)[*NAMES, "relayed"] == 1
    assert numbers(counters, definitions.COMMANDS)[*NAMES, "end_of_data", "2xx"] == 1
    other = counters.session("id", "submission", "new", "")
    other.slowed()
    assert numbers(counters, definitions.SESSIONS) == {NAMES: 0, ("submission", "new"): 1}
    assert numbers(counters, definitions.CLIENTS_SLOWED) == {NAMES: 0, ("submission", "new"): 1}


def test_a_listener_without_sessions_has_zeros() -> None:
    """Else the first session would be no increase for Prometheus."""
    counters = MetricCounters([("smtp", "old")])
    assert numbers(counters, definitions.SESSIONS_OPENED) == {NAMES: 0}
    assert numbers(counters, definitions.MESSAGES)[*NAMES, "relayed"] == 0


def test_each_label_has_a_meaning() -> None:
    used = {label for each in DEFINITIONS.values() for label in each.labels}
    assert used == LABELS.keys()


def test_metrics_of_sessions_have_listener_and_backend_as_labels() -> None:
    snapshot = MetricsSnapshot()
    MetricCounters([NAMES]).put_into(snapshot)
    for each in (*snapshot.samples, *snapshot.histograms):
        assert DEFINITIONS[each.name].labels[:2] == ("listener", "backend")
        assert each.labels[:2] == NAMES


def test_handshakes_count_by_side_version_and_result() -> None:
    counters = MetricCounters()
    session = Watched(counters)
    session.observer.noted("tls_started", side="client", version="TLSv1.3", cipher="x")
    session.observer.noted("tls_started", side="client", version="TLSv1.3", cipher="y")
    session.observer.noted("tls_failed", side="backend", reason="x")
    session.observer.noted("client_turned_away", kind="client_tls_failed", reason="x")
    session.observer.noted("client_turned_away", kind="bad_proxy_header", reason="x")
    assert numbers(counters, definitions.TLS_HANDSHAKES) == {
        (*NAMES, "client", "TLSv1.3", "ok"): 2,
        (*NAMES, "backend", "none", "failed"): 1,
        (*NAMES, "client", "none", "failed"): 1,
    }


def test_faults_count_by_their_flag() -> None:
    counters = MetricCounters()
    session = Watched(counters)
    for fault in ("RCPT 450", "RCPT 450", "NOOP close"):
        session.observer.noted("fault_injected", fault=fault)
    found = numbers(counters, definitions.FAULTS_INJECTED)
    assert found == {(*NAMES, "RCPT 450"): 2, (*NAMES, "NOOP close"): 1}


def test_connections_to_servers_count_by_result() -> None:
    counters = MetricCounters()
    session = Watched(counters)
    session.observer.gave_up("10.0.0.6:25", "refused")
    assert numbers(counters, definitions.BACKEND_CONNECTS) == {
        (*NAMES, "ok"): 1,
        (*NAMES, "given_up"): 1,
    }
    snapshot = MetricsSnapshot()
    counters.put_into(snapshot)
    (seconds,) = snapshot.histograms_of(definitions.BACKEND_CONNECT_SECONDS)
    assert (sum(seconds.counts), seconds.labels) == (1, NAMES)


def test_chunks_that_become_content_count_as_sent_and_only_the_last_waits_for_the_mta() -> None:
    counters = MetricCounters()
    session = Watched(counters, policy=SessionPolicy(add_chunking=True))
    session.sends("EHLO x")
    session.says("250 mx")
    session.sends("MAIL FROM:<a@x>", "RCPT TO:<b@y>")
    payload = b"x" * 998 + b"\r\n"
    session.pipeline.client_received(
        b"BDAT 1000\r\n" + payload + b"BDAT 1000 LAST\r\n" + payload, session.now
    )
    session.says("250 a", "250 b", "354 go", "250 queued")
    snapshot = MetricsSnapshot()
    counters.put_into(snapshot)
    (bdat,) = [each for each in snapshot.histograms if each.labels == (*NAMES, "BDAT")]
    assert (sum(bdat.counts), bdat.total) == (1, 0.25)
    assert numbers(counters, definitions.COMMANDS)[*NAMES, "BDAT", "2xx"] == 2
    content = numbers(counters, definitions.CONTENT_BYTES)
    assert content == {NAMES: 2000}
    assert 2000 < numbers(counters, definitions.BYTES)[*NAMES, "backend", "out"] < 2100


def test_payload_that_a_client_only_announces_does_not_count() -> None:
    counters = MetricCounters()
    session = Watched(counters)
    session.sends("EHLO x")
    session.says("250-mx\r\n250 CHUNKING")
    session.sends("MAIL FROM:<a@x>", "RCPT TO:<b@y>", "BDAT 99999999999999999999", "ab")
    session.says("250 a", "250 b")
    session.pipeline.client_lost(session.now)
    assert numbers(counters, definitions.CONTENT_BYTES) == {NAMES: 4}


def test_refused_authentication_counts_wherever_the_exchange_ends() -> None:
    counters = MetricCounters()
    session = Watched(counters)
    session.sends("EHLO x")
    session.says("250-mx\r\n250 AUTH PLAIN LOGIN")
    session.sends("AUTH PLAIN AGpvZQBiYWQ=")
    session.says("535 no")
    session.sends("AUTH LOGIN")
    session.says("334 VXNlcm5hbWU6")
    session.sends("am9l")
    session.says("454 later")
    session.sends("AUTH PLAIN AGpvZQBnb29k")
    session.says("235 yes")
    assert numbers(counters, definitions.AUTH_REFUSALS) == {NAMES: 2}
