"""Admission: which clients are refused, with which reply, and that all workers count together."""

import asyncio
import os
from array import array
from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from smtpproxy.net import shared_counters
from smtpproxy.net.admission import Admission, AdmissionLimits
from smtpproxy.net.client_connection import ClientConnection
from smtpproxy.net.shared_counters import SLOTS, SharedCounters
from tests.net.conftest import Opener
from tests.net.fakes import Transport, Watcher


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = shared_counters.create()
    yield descriptor
    os.close(descriptor)


def make_admission(
    watcher: Watcher | None = None, row: SharedCounters | None = None, **bounds: object
) -> Admission:
    return Admission(
        AdmissionLimits(**bounds),  # type: ignore[arg-type]  # checked by the dataclass's use
        row or SharedCounters(),
        b"mx.example",
        watcher or Watcher(),
    )


def test_over_the_limit_of_all_sessions_a_client_gets_421() -> None:
    admission = make_admission(sessions=2)
    slots = [admission.enter(host) for host in ("192.0.2.1", "", "192.0.2.3")]
    assert [counter_slots is not None for counter_slots in slots] == [True, True, False]
    assert admission.refusal == b"421 4.3.2 mx.example Error: too busy, try again later\r\n"
    assert slots[0] is not None
    admission.leave(slots[0])
    assert admission.enter("192.0.2.3") is not None


def test_an_address_has_at_most_its_limit_of_sessions() -> None:
    admission = make_admission(sessions_per_address=2)
    slots = [admission.enter("192.0.2.1") for _ in range(3)]
    assert slots[2] is None
    assert admission.refusal.startswith(b"421 4.7.0 mx.example ")
    assert admission.enter("192.0.2.2") is not None
    assert slots[0] is not None
    admission.leave(slots[0])
    assert admission.enter("192.0.2.1") is not None
    assert admission.enter("192.0.2.1") is None


def test_a_network_of_64_bits_counts_as_one_address() -> None:
    admission = make_admission(sessions_per_address=1)
    assert admission.enter("2001:db8::1") is not None
    assert admission.enter("2001:db8::ffff:1") is None
    assert admission.enter("2001:db8:0:1::1") is not None
    assert admission.enter("fe80::1%eth0") is not None


@pytest.mark.parametrize(
    ("prefix", "of_1", "of_2"),
    [
        ("64:ff9b::/96", "64:ff9b::192.0.2.1", "64:ff9b::192.0.2.2"),
        # The examples of RFC 6052 section 2.4, and 192.0.2.34 in place of 192.0.2.33.
        ("2001:db8::/32", "2001:db8:c000:221::", "2001:db8:c000:222::"),
        ("2001:db8:100::/40", "2001:db8:1c0:2:21::", "2001:db8:1c0:2:22::"),
        ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::", "2001:db8:122:c000:2:2200::"),
        ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::", "2001:db8:122:3c0:0:222::"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::", "2001:db8:122:344:c0:2:2200::"),
        ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33", "2001:db8:122:344::192.0.2.34"),
    ],
)
def test_ipv4_clients_through_a_nat64_count_by_their_ipv4_address(
    prefix: str, of_1: str, of_2: str
) -> None:
    nat64 = () if prefix == "64:ff9b::/96" else (ip_network(prefix),)
    admission = make_admission(sessions_per_address=1, nat64=nat64)
    assert admission.enter(of_1) is not None
    assert admission.enter(of_1) is None
    assert admission.enter(of_2) is not None
    ipv4 = "192.0.2.1" if not nat64 else "192.0.2.33"
    assert admission.enter(ipv4) is None, "the same client, without the NAT64"


def test_exempt_applies_to_either_address_of_a_client_behind_a_nat64() -> None:
    for exempt in ("192.0.2.0/24", "64:ff9b::/96"):
        admission = make_admission(sessions_per_address=1, exempt=(ip_network(exempt),))
        assert admission.enter("64:ff9b::192.0.2.1") is not None
        assert admission.enter("64:ff9b::192.0.2.1") is not None


def entered(admission: Admission, times: int, host: str = "192.0.2.1") -> int:
    """Return how many of these sessions, each ended at once, are admitted."""
    slots = [admission.enter(host) for _ in range(times)]
    for each in slots:
        if each is not None:
            admission.leave(each)
    return len(slots) - slots.count(None)


@pytest.mark.parametrize("begin", [60_000.0, 60_059.9, 60_031.7])
def test_the_rate_of_new_sessions_has_no_minute_boundary(
    begin: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A count per minute would admit twice the limit around the end of a minute."""
    now = [begin]
    monkeypatch.setattr("smtpproxy.net.admission.monotonic", lambda: now[0])
    admission = make_admission(new_sessions_per_minute=10)
    assert entered(admission, 30) == 10
    now[0] = begin + 0.2
    assert entered(admission, 30) == 0
    assert entered(admission, 30, "192.0.2.2") == 10, "another address"
    for seconds in range(6, 60, 6):
        now[0] = begin + seconds
        assert entered(admission, 30) == 1, f"after {seconds} s"
    now[0] += 30
    assert entered(admission, 30) == 5
    now[0] += 3600
    assert entered(admission, 30) == 10, "it is never more than full"
    assert admission.refused["new_sessions_per_minute"] == 20 + 30 + 20 + 9 * 29 + 25 + 20


@pytest.mark.parametrize("limit", [1, 3, 7, 59, 61, 1000])
def test_the_limit_of_new_sessions_may_come_at_once(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtpproxy.net.admission.monotonic", lambda: 1e6 / 3)
    admission = make_admission(new_sessions_per_minute=limit)
    assert entered(admission, limit + 5) == limit


def test_new_sessions_are_counted_over_all_workers(
    memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("smtpproxy.net.admission.monotonic", lambda: now[0])
    rows = [SharedCounters(memory, row) for row in range(3)]
    admissions = [make_admission(row=row, new_sessions_per_minute=10) for row in rows]
    assert [entered(admission, 4) for admission in admissions] == [4, 4, 2]
    rows[0].clear()  # a worker is gone: what it let in has come all the same
    now[0] += 6
    assert [entered(admission, 4) for admission in admissions] == [1, 0, 0]


def test_exempt_networks_and_unix_sockets_are_not_counted_by_address() -> None:
    exempt = (ip_network("127.0.0.0/8"), ip_network("2001:db8::/32"))
    admission = make_admission(sessions_per_address=1, exempt=exempt)
    for host in ("127.0.0.1", "2001:db8::1", ""):
        assert admission.enter(host) is not None
        assert admission.enter(host) is not None


def test_workers_count_together_and_an_ended_one_is_not_counted(memory: int) -> None:
    rows = [SharedCounters(memory, row) for row in range(3)]
    admissions = [make_admission(row=row, sessions=4, sessions_per_address=2) for row in rows]
    assert admissions[0].enter("192.0.2.1") is not None
    assert admissions[1].enter("192.0.2.1") is not None
    assert admissions[2].enter("192.0.2.1") is None
    assert [row.sessions() for row in rows] == [2, 2, 2]
    rows[0].clear()
    assert admissions[2].enter("192.0.2.1") is not None


def test_addresses_are_counted_separately() -> None:
    """With 10,000 addresses of one session each, no count reaches 12."""
    row = SharedCounters()
    for number in range(10000):
        row.add(row.slots(number.to_bytes(4, "big")))
    counts = [row.open(row.slots(number.to_bytes(4, "big"))) for number in range(10000)]
    assert row.sessions() == 10000
    assert 1 <= min(counts) <= max(counts) < 12


async def test_a_lagging_loop_refuses_clients_until_it_has_caught_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr("smtpproxy.net.admission.monotonic", lambda: now[0])
    admission = make_admission(event_loop_lag=2.0)
    admission.start()
    assert admission.enter("192.0.2.1") is not None
    admission._watch(now[0] - 2.1)
    assert admission.enter("192.0.2.1") is None
    admission._watch(now[0] - 0.1)
    assert admission.enter("192.0.2.1") is not None
    admission.stop()


def test_a_flood_is_one_line_a_second_with_its_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("smtpproxy.net.admission.monotonic", lambda: now[0])
    watcher = Watcher()
    admission = make_admission(watcher, sessions=1)
    admission.enter("192.0.2.1")
    for _ in range(50):
        admission.enter("192.0.2.2")
    assert watcher.turned_away == [("sessions", "192.0.2.2", 1)]
    now[0] += 1
    admission.enter("192.0.2.3")
    assert watcher.turned_away[1:] == [("sessions", "192.0.2.3", 50)]
    assert admission.refused["sessions"] == 51


async def test_a_refused_client_costs_no_session() -> None:
    class OneClient:
        """A listener context that admits one client."""

        admission = make_admission(sessions=1)

    OneClient.admission.enter("192.0.2.9")
    transport = Transport()
    swapped: list[asyncio.BaseProtocol] = []
    transport.set_protocol = swapped.append  # type: ignore[method-assign]
    ClientConnection(OneClient()).connection_made(transport)  # type: ignore[arg-type]
    assert b"".join(transport.written).startswith(b"421 4.3.2 ")
    assert transport.state == "closed"
    assert swapped  # nothing that the client sends is looked at


async def test_a_half_closed_client_counts_until_the_backend_has_answered(
    opened: Opener,
) -> None:
    """Otherwise a client could make the MTA process many groups without counting as a session."""
    row = SharedCounters()
    stage = await opened(admission=make_admission(row=row, sessions_per_address=1))
    (server,) = stage.servers
    server.says(b"220 here\r\n")
    stage.sends(b"EHLO c\r\nVRFY a\r\n")
    stage.connection.eof_received()
    server.says(b"250 here\r\n")
    assert row.sessions() == 1
    server.says(b"252 perhaps\r\n")
    assert stage.ended
    stage.connection.connection_lost(None)
    assert row.sessions() == 0


async def test_a_reset_client_stops_counting_and_the_backend_stops(
    opened: Opener,
) -> None:
    row = SharedCounters()
    stage = await opened(admission=make_admission(row=row, sessions_per_address=1))
    (server,) = stage.servers
    server.says(b"220 here\r\n")
    stage.sends(b"EHLO c\r\nVRFY a\r\n")
    stage.connection.connection_lost(ConnectionResetError())
    assert row.sessions() == 0
    assert server.transport.state == "aborted"


async def test_a_lingering_client_counts_until_it_has_closed(opened: Opener) -> None:
    row = SharedCounters()
    stage = await opened(admission=make_admission(row=row))
    (server,) = stage.servers
    server.says(b"421 busy\r\n")
    assert stage.ended
    assert row.sessions() == 1
    stage.connection.connection_lost(None)
    assert row.sessions() == 0


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.1", b"\xc0\x00\x02\x01"),
        ("127.0.0.1", b"\x7f\x00\x00\x01"),
        ("2001:db8::1:2", b"\x20\x01\x0d\xb8\0\0\0\0"),
        ("64:ff9b::192.0.2.1", b"\xc0\x00\x02\x01"),
        ("2001:db8:64::192.0.2.1", b"\xc0\x00\x02\x01"),
        ("", b""),
    ],
)
def test_connection_slots_are_shared_by_the_address_of_the_limits(
    host: str, address: bytes
) -> None:
    """By the same rule as the limits, even for exempt clients."""
    nat64, exempt = (ip_network("2001:db8:64::/96"),), (ip_network("127.0.0.0/8"),)
    assert make_admission(nat64=nat64, exempt=exempt).address_of(host) == address


def test_a_count_of_another_replica_that_goes_back_takes_nothing_from_the_buckets() -> None:
    """Two of its workers may write a count at once, so that it is lower than before."""
    here, there = SharedCounters(), SharedCounters()
    here.change_key(there.key)
    slots = there.slots(b"a")
    before = there.admitted()
    for _ in range(3):
        there.drain(slots, 0.0)
    after = there.admitted()
    here.drain_for_replica(after, before, 10.0, 1000.0)
    assert here.full_again(slots) == 0.0
    here.drain_for_replica(before, after, 10.0, 1000.0)
    assert here.full_again(slots) == 1030.0


def test_a_count_of_another_replica_may_wrap() -> None:
    here = SharedCounters()
    words = [array("I", [0]) * SLOTS for _ in range(2)]
    words[0][7], words[1][7] = 0xFFFFFFFF, 1
    here.drain_for_replica(*map(bytes, words), 10.0, 1000.0)
    assert here.full_again((7, 7)) == 1020.0
