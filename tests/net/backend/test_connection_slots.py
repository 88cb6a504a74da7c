"""Places at a backend: never more than there are, and each in its turn."""

import asyncio

import pytest

from smtpproxy.net.backend.connection_slots import Queue


class Waiter:
    """Remembers what it was answered."""

    def __init__(self, places: Queue) -> None:
        self.places = places
        self.answer: bool | None = None
        places.ask(self, self.take)

    def take(self, granted: bool) -> None:
        assert self.answer is None, "answered twice"
        self.answer = granted

    def leave(self) -> None:
        self.places.leave(self)


async def test_there_are_never_more_taken_than_there_are() -> None:
    places = Queue(2, 30)
    waiters = [Waiter(places) for _ in range(5)]
    assert [waiter.answer for waiter in waiters] == [True, True, None, None, None]
    assert (places.taken, places.waiting) == (2, 3)


async def test_they_are_given_in_the_order_in_which_they_were_asked_for() -> None:
    places = Queue(1, 30)
    first, second, third = (Waiter(places) for _ in range(3))
    first.leave()
    assert (second.answer, third.answer) == (True, None)
    fourth = Waiter(places)
    second.leave()
    assert (third.answer, fourth.answer) == (True, None)


async def test_who_leaves_while_waiting_takes_no_place() -> None:
    places = Queue(1, 30)
    first, second, third = (Waiter(places) for _ in range(3))
    second.leave()
    first.leave()
    assert (second.answer, third.answer) == (None, True)


async def test_who_has_waited_too_long_is_refused_and_the_rest_wait_on() -> None:
    places = Queue(1, 0.02)
    holder, waiter = Waiter(places), Waiter(places)
    places.max_wait = 30
    later = Waiter(places)
    async with asyncio.timeout(5):
        while waiter.answer is None:
            await asyncio.sleep(0.005)
    assert (waiter.answer, later.answer) == (False, None)
    waiter.leave()  # as each session does at its end
    assert (places.taken, places.waiting) == (1, 1)
    holder.leave()
    assert later.answer is True


@pytest.mark.parametrize("more", [1, 5])
async def test_a_higher_limit_lets_in_who_waits(more: int) -> None:
    places = Queue(1, 30)
    waiters = [Waiter(places) for _ in range(4)]
    places.limit += more
    places.serve()
    assert [waiter.answer for waiter in waiters].count(True) == min(4, 1 + more)
