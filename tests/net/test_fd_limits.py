"""File descriptors: when they are short, and how new clients are then handled."""

import asyncio
import resource
import socket

import pytest

from smtpproxy.config.address import Address
from smtpproxy.net import fd_limits
from smtpproxy.net.admission import Admission, AdmissionLimits
from smtpproxy.net.fd_limits import SPARE, FdLimits
from smtpproxy.net.listener import Listener
from smtpproxy.net.shared_counters import SharedCounters
from tests.net.fakes import Watcher


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The limit, which tests change."""
    limits = [1000]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limits[0], 4096))
    return limits


def test_a_high_descriptor_shows_that_they_are_short(limit: list[int]) -> None:
    found = FdLimits()
    assert not found.short_at(999 - SPARE, 0)
    assert found.short_at(1000 - SPARE, 0)
    limit[0] = 2000
    assert found.short_at(1000 - SPARE, 0)
    found.look()
    assert not found.short_at(1000 - SPARE, 0)


def test_a_quarter_of_a_low_limit_is_reserved(limit: list[int]) -> None:
    limit[0] = 40
    found = FdLimits()
    assert not found.short_at(29, 0)
    assert found.short_at(30, 0)
    assert not found.short_at(29, 14)
    assert found.short_at(29, 15)  # those may be waiting for their backends yet


class PausableListener:
    """A listener that records whether it should accept."""

    def __init__(self) -> None:
        self.paused: list[bool] = []

    def pause(self, paused: bool) -> None:
        self.paused.append(paused)


async def test_listeners_pause_while_no_descriptor_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    watcher, listener = Watcher(), PausableListener()
    admission = Admission(AdmissionLimits(), SharedCounters(), b"mx.example", watcher)
    admission.start([listener])

    def none_left(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(fd_limits.os, "open", none_left)
    admission._watch(0.0)
    admission._watch(0.0)
    monkeypatch.undo()
    admission._watch(0.0)
    admission.stop()
    assert listener.paused == [False, True, True, False]
    assert watcher.turned_away == [("file_descriptors", "", 1)]  # reported once


def test_a_client_is_refused_when_they_are_short(limit: list[int]) -> None:
    watcher = Watcher()
    admission = Admission(AdmissionLimits(), SharedCounters(), b"mx.example", watcher)
    assert admission.enter("192.0.2.1", 10) is not None
    assert admission.enter("192.0.2.1", limit[0] - 1) is None
    assert admission.refusal.startswith(b"421 4.3.2 mx.example ")
    assert watcher.turned_away == [("file_descriptors", "192.0.2.1", 1)]


async def test_clients_wait_while_a_listener_is_paused() -> None:
    accepted, over = asyncio.Event(), asyncio.Event()

    class Client(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.set()
            transport.close()

        def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
            over.set()

    listener = Listener(Address(host="127.0.0.1"), None)  # type: ignore[arg-type]  # unused
    listener._make_client = Client  # type: ignore[method-assign]
    await listener.open()
    port = int(listener.addresses[0].rpartition(":")[2])
    listener.pause(True)
    listener.pause(True)
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        await asyncio.sleep(0)
        assert not accepted.is_set()
        listener.pause(False)
        listener.pause(False)
        await asyncio.wait_for(accepted.wait(), 5)
        await asyncio.wait_for(over.wait(), 5)
    listener.close()
    listener.pause(False)
    assert listener._resuming is None
