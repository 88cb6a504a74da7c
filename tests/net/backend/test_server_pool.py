"""The servers of a backend: which is tried first, and which is down."""

import asyncio
import errno
from typing import Any

import pytest

from smtpproxy.config.address import ORIGINAL, Address
from smtpproxy.net.backend.server_pool import Server, ServerPool
from tests.net.fakes import Clock


class Reported(list[tuple[str, bool]]):
    """Records which servers went down or came up."""

    def __call__(self, name: str, up: bool, why: str) -> None:  # noqa: ARG002
        self.append((name, up))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("smtpproxy.net.backend.server_pool.monotonic", clock)
    return clock


def group(reported: Any = None, **options: Any) -> tuple[ServerPool, list[Server]]:
    servers = [Server(Address(host, 25)) for host in ("one", "two", "three")]
    return ServerPool(
        servers, 10, changed=Reported() if reported is None else reported, **options
    ), servers


@pytest.mark.usefixtures("clock")
def test_the_first_named_is_first() -> None:
    servers, order = group()
    order[0].sessions = 9
    assert servers.in_order() == order


@pytest.mark.usefixtures("clock")
def test_balance_least_tries_the_server_with_the_fewest_sessions_first() -> None:
    servers, (one, two, three) = group(least=True)
    one.sessions, two.sessions = 2, 1
    assert servers.in_order() == [three, two, one]
    three.sessions = 2
    assert servers.in_order() == [two, one, three]


@pytest.mark.usefixtures("clock")
def test_servers_with_equal_sessions_take_turns() -> None:
    """Otherwise all sessions would use the first one if each ends before the next starts."""
    servers, (one, two, three) = group(least=True)
    assert [servers.in_order()[0] for _ in range(4)] == [one, two, three, one]


def test_a_failed_server_is_not_tried_for_a_while(clock: Clock) -> None:
    servers, (one, two, three) = group()
    servers.failed(one, "why")
    clock.now += 9.9
    assert servers.in_order() == [two, three, one]
    clock.now += 0.1
    assert servers.in_order() == [one, two, three]


def test_only_one_session_tries_whether_it_is_up_again(clock: Clock) -> None:
    """With a server that drops connection attempts, each session would wait for the time limit."""
    servers, (one, two, three) = group()
    servers.failed(one, "why")
    clock.now += 10
    assert servers.in_order() == [one, two, three]
    assert servers.in_order() == [two, three, one]
    servers.greeted(one)
    assert servers.in_order() == [one, two, three]


@pytest.mark.usefixtures("clock")
def test_all_are_tried_when_all_have_failed() -> None:
    servers, order = group()
    for server in order:
        servers.failed(server, "why")
    assert servers.in_order() == order


def test_each_change_is_reported_once(clock: Clock) -> None:
    reported = Reported()
    servers, (one, two, _) = group(reported)
    servers.greeted(one)
    assert reported == []
    servers.failed(one, "why")
    servers.failed(one, "why")
    clock.now += 20
    servers.failed(one, "why")
    assert reported == [("one:25", False)]
    servers.greeted(one)
    servers.greeted(one)
    assert reported == [("one:25", False), ("one:25", True)]
    assert two.left_alone_until == 0.0


@pytest.mark.usefixtures("clock")
def test_reports_of_other_workers_apply_and_are_not_repeated() -> None:
    reported = Reported()
    servers, (one, two, three) = group(reported)
    servers.learn("one:25", up=False)
    assert servers.in_order() == [two, three, one]
    servers.learn("one:25", up=True)
    assert servers.in_order() == [one, two, three]
    assert reported == []


def test_a_server_that_is_being_checked_is_not_tried_before_the_end_of_the_check(
    clock: Clock,
) -> None:
    servers, (one, two, three) = group(Reported())
    servers.learn("one:25", up=False, alone_s=30.0)
    clock.now += 29
    assert servers.in_order() == [two, three, one]
    clock.now += 2
    assert servers.in_order() == [one, two, three]


class Asked:
    """Replaces the check; a test sets the result."""

    def __init__(self) -> None:
        self.servers: list[Server] = []
        self._answers: asyncio.Queue[str | OSError] = asyncio.Queue()

    async def __call__(self, server: Server) -> str:
        self.servers.append(server)
        found = await self._answers.get()
        if isinstance(found, OSError):
            raise found
        return found

    async def finds(self, found: str | OSError) -> None:
        """Finish the check in progress."""
        self._answers.put_nowait(found)
        await settled()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class TestDoubt:
    """A server with the client's address failed for one client: it is checked for others."""

    @pytest.mark.usefixtures("clock")
    async def test_a_reachable_server_stays_up(self) -> None:
        reported, asked = Reported(), Asked()
        servers, (one, two, three) = group(reported, check=asked)
        servers.request_check(one)
        await settled()
        assert servers.in_order() == [one, two, three]
        await asked.finds("")
        assert asked.servers == [one]
        assert servers.in_order() == [one, two, three]
        assert reported == []

    @pytest.mark.usefixtures("clock")
    async def test_an_unreachable_server_is_marked_as_down(self) -> None:
        reported, asked = Reported(), Asked()
        servers, (one, two, three) = group(reported, check=asked)
        servers.request_check(one)
        await settled()
        await asked.finds("Connection refused")
        assert servers.in_order() == [two, three, one]
        assert reported == [("one:25", False)]

    async def test_a_recovered_server_comes_up(self, clock: Clock) -> None:
        reported, asked = Reported(), Asked()
        servers, (one, two, three) = group(reported, check=asked)
        servers.failed(one, "why")
        clock.now += 1
        servers.request_check(one)
        await settled()
        await asked.finds("")
        assert reported == [("one:25", False), ("one:25", True)]
        assert servers.in_order() == [one, two, three]

    async def test_refused_clients_do_not_cause_repeated_checks(self, clock: Clock) -> None:
        asked = Asked()
        servers, (one, two, _) = group(check=asked)
        servers.request_check(one)
        await settled()
        clock.now += 60
        servers.request_check(one)  # the check is still running, however long that takes
        servers.request_check(two)
        await settled()
        assert asked.servers == [one, two]
        await asked.finds("")
        await asked.finds("")
        clock.now += 9.9
        servers.request_check(one)
        await settled()
        assert len(asked.servers) == 2
        clock.now += 0.1
        servers.request_check(one)
        await settled()
        assert len(asked.servers) == 3
        await asked.finds("")

    async def test_a_server_that_greets_others_is_not_checked(self, clock: Clock) -> None:
        asked = Asked()
        servers, (one, _, _) = group(check=asked)
        servers.greeted(one)
        clock.now += 9.9
        servers.request_check(one)
        await settled()
        assert asked.servers == []

    @pytest.mark.usefixtures("clock")
    async def test_a_shortage_of_this_machine_takes_no_server_down(self) -> None:
        reported, asked = Reported(), Asked()
        servers, (one, _, _) = group(reported, check=asked)
        servers.request_check(one)
        await settled()
        await asked.finds(OSError(errno.EMFILE, "Too many open files"))
        assert reported == []

    @pytest.mark.usefixtures("clock")
    async def test_original_targets_are_not_checked(self) -> None:
        asked = Asked()
        original = Server(Address(ORIGINAL))
        servers = ServerPool([original], changed=Reported(), check=asked)
        servers.request_check(original)
        await settled()
        assert asked.servers == []


OFFER, OTHER = b"250 SIZE\r\n", b"250 DSN\r\n"


class TestOffers:
    """PIPECONNECT: the EHLO replies of all servers that a client may reach are compared."""

    def test_one_server_is_compared_with_itself(self) -> None:
        servers = ServerPool([Server(Address("one", 25))], changed=Reported())
        (one,) = servers.in_order()
        assert servers.offers(one, OFFER) == [OFFER]
        assert servers.offers(one, OFFER) == [OFFER]

    async def test_a_server_that_is_not_known_is_checked_first(self, clock: Clock) -> None:
        asked = Asked()
        servers, (one, two, three) = group(check=asked)
        assert servers.offers(one, OFFER) == []
        await settled()
        assert servers.offers(two, OFFER) == []
        clock.now += 60
        await settled()
        assert asked.servers == [two, three]
        assert servers.offers(three, OTHER) == [OFFER, OFFER, OTHER]
        servers.stop()

    @pytest.mark.usefixtures("clock")
    def test_servers_that_are_down_do_not_count(self) -> None:
        servers, (one, two, three) = group()
        servers.failed(two, "why")
        servers.learn("three:25", up=False)
        assert servers.offers(one, OFFER) == [OFFER]
        servers.greeted(two)
        assert servers.offers(two, OFFER) == [OFFER, OFFER]
        servers.learn("three:25", up=True)
        assert servers.offers(two, OFFER) == []
        assert servers.offers(three, OFFER) == [OFFER, OFFER, OFFER]

    @pytest.mark.usefixtures("clock")
    def test_a_server_that_was_down_may_have_been_changed(self) -> None:
        servers, (one, two, three) = group()
        for each in (one, two, three):
            servers.offers(each, OFFER)
        servers.failed(one, "why")
        servers.greeted(one)
        assert servers.offers(two, OFFER) == []
        servers.learn("two:25", up=False)
        servers.learn("two:25", up=True)
        assert servers.offers(one, OFFER) == []

    def test_a_changed_offer_withdraws_it_for_a_while(self, clock: Clock) -> None:
        """A name may stand for several machines, whose offers differ."""
        servers = ServerPool([Server(Address("one", 25))], changed=Reported())
        (one,) = servers.in_order()
        assert servers.offers(one, OFFER) == [OFFER]
        assert servers.offers(one, OTHER) == []
        assert servers.offers(one, OTHER) == []
        clock.now += 599.9
        assert servers.offers(one, OTHER) == []
        clock.now += 0.1
        assert servers.offers(one, OTHER) == [OTHER]

    @pytest.mark.usefixtures("clock")
    def test_each_original_target_is_a_server_by_itself(self) -> None:
        original = Server(Address(ORIGINAL))
        servers = ServerPool([original], changed=Reported())
        assert servers.offers(original, OFFER) == [OFFER]
        assert servers.offers(original, OTHER) == [OTHER]
