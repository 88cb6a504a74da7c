"""Connection slots: never over the limit, in turn by address, reclaimed from the largest holder.

The dialogues: `A1 asks` is a session of address A; `-> A1` it gets its slot, `A1 no` it is refused,
`A1!` it is asked to give its slot back.
"""

import asyncio
from collections.abc import Callable

import pytest

from smtpproxy.net.backend.connection_slots import SlotQueue


class Line:
    """A queue, the sessions that use it by name, and their events."""

    def __init__(self, limit: int, max_wait: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("smtpproxy.net.backend.connection_slots.monotonic", lambda: self.now)
        self.queue = SlotQueue(limit, max_wait)
        self.sessions: dict[str, Session] = {}
        self.happened: list[str] = []

    def ask(self, *names: str) -> str:
        """Request a slot for sessions; the address is the name without its number."""
        for name in names:
            self.sessions[name] = Session(name, self)
            self.queue.ask(self.sessions[name], name.rstrip("0123456789").encode())
        return self.says()

    def leave(self, *names: str) -> str:
        """Release the slots of sessions, or cancel their requests."""
        for name in names:
            self.queue.leave(self.sessions[name])
        return self.says()

    def passes(self, seconds: float) -> str:
        """Advance the clock, and check the queue."""
        self.now += seconds
        self.queue.look()
        return self.says()

    def says(self) -> str:
        """Return the events since the last call."""
        said, self.happened = " ".join(self.happened), []
        return said

    @property
    def count(self) -> tuple[int, int]:
        """The numbers of slots in use and of waiting sessions."""
        return self.queue.taken, self.queue.waiting


class Session:
    """Replaces a session."""

    def __init__(self, name: str, line: Line) -> None:
        self.name = name
        self.line = line
        self.answer: bool | None = None

    def slot_answered(self, *, granted: bool) -> None:
        assert self.answer is None, "answered twice"
        self.answer = granted
        self.line.happened.append(f"-> {self.name}" if granted else f"{self.name} no")

    def reclaim_slot(self) -> None:
        assert self.answer
        self.line.happened.append(f"{self.name}!")


MakeLine = Callable[..., Line]


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> MakeLine:
    return lambda limit, max_wait=30: Line(limit, max_wait, monkeypatch)


async def test_never_more_slots_are_in_use_than_the_limit(line: MakeLine) -> None:
    two = line(2)
    assert two.ask("A1", "B1", "C1", "D1", "E1") == "-> A1 -> B1"
    assert two.count == (2, 3)


async def test_the_sessions_of_an_address_are_served_in_their_order(line: MakeLine) -> None:
    one = line(1)
    assert one.ask("A1", "A2", "A3") == "-> A1"
    assert one.leave("A1") == "-> A2"
    one.ask("A4")
    assert one.leave("A2") == "-> A3"
    assert one.leave("A3") == "-> A4"


async def test_addresses_are_served_in_turns(line: MakeLine) -> None:
    """An address with a hundred requests waits as long for its second slot as others."""
    one = line(1)
    one.ask("X1", "A1", "A2", "A3", "B1", "C1", "C2")
    served, last = [], "X1"
    while one.queue.waiting:
        last = one.leave(last).removeprefix("-> ")
        served.append(last)
    assert served == ["A1", "B1", "C1", "A2", "C2", "A3"]


async def test_an_address_gets_no_more_than_its_share_while_others_wait(line: MakeLine) -> None:
    four = line(4)
    assert four.ask("A1", "A2", "A3", "A4") == "-> A1 -> A2 -> A3 -> A4"
    four.ask("A5", "A6", "B1", "B2", "B3")
    assert four.leave("A1") == "-> B1", "three are more than its share of two"
    assert four.leave("A2") == "-> B2", "so are two and one more"
    assert four.leave("A3") == "-> A5", "one of four, and it has waited for longer than B3"
    assert four.leave("A4") == "-> A6", "B has its share"
    assert four.leave("B1") == "-> B3"


async def test_a_single_address_may_have_all_slots(line: MakeLine) -> None:
    three = line(3)
    assert three.ask("A1", "A2", "A3", "A4") == "-> A1 -> A2 -> A3"
    assert three.leave("A1") == "-> A4"


async def test_no_slot_stays_unused_if_all_waiting_addresses_have_their_share(
    line: MakeLine,
) -> None:
    three = line(3)  # a share is one
    assert three.ask("A1", "B1", "C1", "A2", "B2") == "-> A1 -> B1 -> C1"
    assert three.leave("C1") == "-> A2"
    assert three.leave("A1") == "-> B2", "A still has one, as B does"


async def test_a_client_that_leaves_the_queue_takes_no_slot(line: MakeLine) -> None:
    one = line(1)
    one.ask("A1", "B1", "C1")
    one.leave("B1")
    assert one.leave("A1") == "-> C1"
    assert one.leave("C1", "C1", "B1") == "", "to leave twice is to leave"
    assert one.count == (0, 0)
    assert not one.queue._held
    assert not one.queue._turns


async def test_a_client_that_has_waited_too_long_is_refused_and_the_others_wait(
    line: MakeLine,
) -> None:
    one = line(1)
    one.ask("A1", "A2")
    assert one.passes(20) == ""
    one.ask("A3")
    assert one.passes(10) == "A2 no"
    one.leave("A2")  # as each session does at its end
    assert one.count == (1, 1)
    assert one.leave("A1") == "-> A3"


async def test_the_queue_checks_itself_while_clients_wait() -> None:
    said: list[str] = []

    class Waiter(Session):
        def __init__(self) -> None:
            self.answer: bool | None = None

        def slot_answered(self, *, granted: bool) -> None:
            said.append("granted" if granted else "refused")
            self.answer = granted
            if not granted:
                done.set()

        def reclaim_slot(self) -> None:
            said.append("reclaimed")

    done = asyncio.Event()
    queue = SlotQueue(1, 0.1)
    queue.ask(Waiter(), b"A")
    queue.ask(Waiter(), b"B")
    async with asyncio.timeout(5):
        await done.wait()
    assert said == ["granted", "reclaimed", "refused"]


@pytest.mark.parametrize("more", [1, 5])
async def test_a_higher_limit_admits_waiting_clients(more: int, line: MakeLine) -> None:
    one = line(1)
    one.ask("A1", "A2", "A3", "A4")
    one.queue.resize(1 + more, one.queue.max_wait)
    assert one.count[0] == min(4, 1 + more)


async def test_a_slot_is_reclaimed_from_the_address_that_holds_most(line: MakeLine) -> None:
    """After a quarter of max_wait; of its sessions, the one that has held its slot longest."""
    four = line(4)
    four.ask("B1", "A1", "A2", "A3")
    four.passes(100)
    four.ask("C1")
    assert four.passes(7.4) == ""
    assert four.passes(0.1) == "A1!"
    assert four.leave("A1") == "-> C1"
    four.ask("A4")
    assert four.passes(20) == "", "A has more than the others, not fewer"


async def test_another_session_is_asked_if_the_first_does_not_end(line: MakeLine) -> None:
    """The session may be in the middle of a large message."""
    three = line(3)
    three.ask("A1", "A2", "A3")
    three.passes(100)
    three.ask("B1")
    assert [three.passes(7.5) for _ in range(3)] == ["A1!", "A2!", "A3!"]
    assert three.leave("A2") == "-> B1"
    three.ask("C1")
    assert three.passes(7.4) == "", "B has not held its slot for long enough"
    assert three.passes(0.1) == "B1!"


async def test_a_new_slot_is_not_reclaimed(line: MakeLine) -> None:
    one = line(1)
    one.ask("A1", "B1", "C1")
    one.passes(20)
    assert one.says() == ""
    one.leave("A1")
    one.says()
    assert one.passes(7.4) == ""
    assert one.passes(0.1) == "B1!"


async def test_nothing_is_reclaimed_for_an_address_with_as_many_slots(line: MakeLine) -> None:
    four = line(4)
    four.ask("A1", "A2", "B1", "B2")
    four.passes(100)
    four.ask("A3", "B3")
    assert four.passes(29) == ""


async def test_a_single_slot_is_shared_in_time(line: MakeLine) -> None:
    """Otherwise one address could hold the only slot for ever."""
    one = line(1)
    one.ask("A1")
    one.passes(1000)
    one.ask("B1")
    assert one.passes(7.5) == "A1!"
    assert one.leave("A1") == "-> B1"


async def test_an_address_that_keeps_connecting_does_not_exclude_others(line: MakeLine) -> None:
    """Ten connections that never end by themselves, each replaced at once when it is reclaimed."""
    ten = line(10)
    hogs = [f"A{number}" for number in range(10)]
    ten.ask(*hogs)
    for round_ in range(5):
        ten.ask(*(f"A{100 * (round_ + 1) + number}" for number in range(20)))
        ten.says()
        ten.ask("B1")
        said = ""
        for _ in range(8):
            said += ten.passes(30 / 8)
            for name in [name for name, each in ten.sessions.items() if f"{name}!" in said.split()]:
                said += " " + ten.leave(name)
            if "-> B1" in said:
                break
        assert "-> B1" in said, f"round {round_}"
        ten.leave("B1")


async def test_many_waiting_addresses_are_not_searched(line: MakeLine) -> None:
    """Finding the next address costs the same however many wait."""
    two = line(2)
    two.ask("A1", "A2", *(f"B{number}".replace("B", "B" * (number + 1)) for number in range(500)))
    looked = 0

    class Counting(dict[bytes, int]):
        def get(self, *arguments: object) -> int:  # type: ignore[override]
            nonlocal looked
            looked += 1
            return super().get(*arguments)  # type: ignore[call-overload,no-any-return]

    two.queue._held = Counting(two.queue._held)
    two.leave("A1")
    assert looked < 5
