"""Places at a backend: never more than there are, and each in its turn."""

import asyncio

import pytest

from smtpproxy.net.backend.connection_slots import SlotQueue


class Waiter:
    """Remembers what it was answered."""

    def __init__(self, connection_slots: SlotQueue) -> None:
        self.connection_slots = connection_slots
        self.answer: bool | None = None
        connection_slots.ask(self, self.take)

    def take(self, granted: bool) -> None:
        assert self.answer is None, "answered twice"
        self.answer = granted

    def leave(self) -> None:
        self.connection_slots.leave(self)


async def test_there_are_never_more_taken_than_there_are() -> None:
    connection_slots = SlotQueue(2, 30)
    waiters = [Waiter(connection_slots) for _ in range(5)]
    assert [waiter.answer for waiter in waiters] == [True, True, None, None, None]
    assert (connection_slots.taken, connection_slots.waiting) == (2, 3)


async def test_they_are_given_in_the_order_in_which_they_were_asked_for() -> None:
    connection_slots = SlotQueue(1, 30)
    first, second, third = (Waiter(connection_slots) for _ in range(3))
    first.leave()
    assert (second.answer, third.answer) == (True, None)
    fourth = Waiter(connection_slots)
    second.leave()
    assert (third.answer, fourth.answer) == (True, None)


async def test_who_leaves_while_waiting_takes_no_place() -> None:
    connection_slots = SlotQueue(1, 30)
    first, second, third = (Waiter(connection_slots) for _ in range(3))
    second.leave()
    first.leave()
    assert (second.answer, third.answer) == (None, True)


async def test_who_has_waited_too_long_is_refused_and_the_rest_wait_on() -> None:
    connection_slots = SlotQueue(1, 0.02)
    holder, waiter = Waiter(connection_slots), Waiter(connection_slots)
    connection_slots.max_wait = 30
    later = Waiter(connection_slots)
    async with asyncio.timeout(5):
        while waiter.answer is None:
            await asyncio.sleep(0.005)
    assert (waiter.answer, later.answer) == (False, None)
    waiter.leave()  # as each session does at its end
    assert (connection_slots.taken, connection_slots.waiting) == (1, 1)
    holder.leave()
    assert later.answer is True


@pytest.mark.parametrize("more", [1, 5])
async def test_a_higher_limit_lets_in_who_waits(more: int) -> None:
    connection_slots = SlotQueue(1, 30)
    waiters = [Waiter(connection_slots) for _ in range(4)]
    connection_slots.limit += more
    connection_slots.serve()
    assert [waiter.answer for waiter in waiters].count(True) == min(4, 1 + more)
