"""A lost peer: whatever the state of the session, within a second nothing of it is held.

The state of a session (rows), and what the client or the MTA does then (a reset, a half-close,
nothing more).  What is looked at is what the proxy has counted, connected and kept in memory, and
the reason in its log.
"""

import gc
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.net.raw import (
    CONTENT,
    GREETING,
    HANDSHAKE,
    Client,
    Proxy,
    on_uvloop,
    proxy,
    within_a_second,
)

ENVELOPE = b"MAIL FROM:<a@a>\r\nRCPT TO:<b@b>\r\n"
STARTTLS = 'tls = "starttls"\ncertificate = "@/mx.pem"'
IMPLICIT = 'tls = "implicit"\ncertificate = "@/mx.pem"'
TO_STARTTLS = b"250-mx\r\n250 STARTTLS\r\n"
CHUNK = b"x" * 998 + b"\r\n"
LONG = b"".join(b"250-%b\r\n" % (b"x" * 900) for _ in range(60)) + b"250 ok\r\n"


@pytest.fixture(autouse=True)
def no_garbage_collector() -> Iterator[None]:
    """What a session was is freed by counting references, however it ends."""
    gc.disable()
    yield
    gc.enable()


# --- how a session comes to a state --------------------------------------------------------------


async def connected(here: Proxy) -> Client:
    """A client that has sent nothing, while the MTA has sent no greeting, or is not connected."""
    one = here.client()
    await within_a_second(here.held)
    return one


async def greeted(here: Proxy) -> Client:
    one = here.client()
    await one.hear(b"220 mx\r\n")
    return one


async def said(here: Proxy, *commands: bytes) -> Client:
    """A client whose commands have all reached the MTA."""
    one = await greeted(here)
    for command in commands:
        one.send(command)
        await got(here, command.split(b"\r\n")[0])
        await within_a_second(lambda: not here.session.listener_context.write_batcher.pending)
    return one


async def got(here: Proxy, line: bytes) -> None:
    """Wait until the MTA has a command."""
    await within_a_second(lambda: any(line in each.lines for each in here.mta.connections))


async def in_a_group(here: Proxy) -> Client:
    return await said(here, ENVELOPE)


async def asked_for_data(here: Proxy) -> Client:
    one = await said(here, ENVELOPE + b"DATA\r\n")
    await got(here, b"DATA")
    return one


async def asked_for_credentials(here: Proxy) -> Client:
    one = await said(here, b"AUTH LOGIN\r\n")
    await one.hear(b"334 \r\n")
    return one


async def in_content(here: Proxy) -> Client:
    one = await asked_for_data(here)
    await one.hear(b"354 go\r\n")
    one.send(b"half a mess")
    await within_a_second(lambda: here.mta.open[0]._unread)
    return one


async def in_a_payload(here: Proxy) -> Client:
    one = await said(here, b"EHLO c\r\n")
    await one.hear(b"250 ")
    one.send(ENVELOPE + b"BDAT 100 LAST\r\nhalf")
    await within_a_second(lambda: here.mta.open[0]._unread)
    return one


async def sent_a_first_chunk(here: Proxy) -> Client:
    """A client whose BDAT becomes DATA, and all of whose first chunk has come."""
    one = await said(here, b"EHLO c\r\n")
    await one.hear(b"250 ")
    one.send(ENVELOPE + b"BDAT 6\r\nhalf a")
    await got(here, b"DATA")
    return one


async def between_chunks(here: Proxy) -> Client:
    one = await sent_a_first_chunk(here)
    await one.hear(b"250 2.0.0 6 bytes received\r\n")
    return one


async def in_a_chunk(here: Proxy) -> Client:
    one = await between_chunks(here)
    one.send(b"BDAT 6 LAST\r\n me")
    await within_a_second(lambda: b"half a me" in here.mta.open[0]._unread)
    return one


async def after_the_last_chunk(here: Proxy) -> Client:
    one = await between_chunks(here)
    one.send(b"BDAT 0 LAST\r\nQUIT\r\n")
    await within_a_second(lambda: here.mta.open[0].messages)
    return one


async def after_the_dot(here: Proxy) -> Client:
    one = await asked_for_data(here)
    await one.hear(b"354 go\r\n")
    one.send(b"text\r\n.\r\nQUIT\r\n")
    await within_a_second(lambda: here.mta.open[0].messages)
    return one


async def quitting(here: Proxy) -> Client:
    return await said(here, b"QUIT\r\n")


async def lingering(here: Proxy) -> Client:
    """A client that has got its last reply, and has not closed."""
    one = await greeted(here)
    one.send(b"GET / HTTP/1.1\r\n")
    await one.rest()
    return one


async def leaving_replies_unread(here: Proxy) -> Client:
    return await _leaving_replies_unread(here, await greeted(here))


async def _leaving_replies_unread(here: Proxy, one: Client) -> Client:
    here.mta.replies[b"NOOP"] = LONG
    await within_a_second(lambda: one.send(b"NOOP\r\n" * 5) or here.session._client_blocked)
    return one


async def before_an_mta_that_does_not_read(here: Proxy) -> Client:
    one = await asked_for_data(here)
    await one.hear(b"354 go\r\n")
    here.mta.open[0].transport.pause_reading()
    await within_a_second(lambda: one.flood(CHUNK) or here.session.client_paused)
    return one


async def with_a_full_queue(here: Proxy) -> Client:
    one = await greeted(here)
    one.send(b"NOOP\r\n" * 3000)
    await within_a_second(lambda: here.session.client_paused)
    return one


async def half_closed(here: Proxy) -> Client:
    one = await in_a_group(here)
    one.half_close()
    await within_a_second(lambda: here.session.pipeline.client_ended)
    return one


async def asked_to_begin_tls(here: Proxy) -> Client:
    one = await greeted(here)
    one.send(b"STARTTLS\r\n")
    await one.hear(b"220 2.0.0 Ready to start TLS\r\n")
    return one


async def in_its_handshake(here: Proxy) -> Client:
    one = await asked_to_begin_tls(here)
    one.say_client_hello()
    await one.some()
    return one


async def in_its_first_handshake(here: Proxy) -> Client:
    one = await connected(here)
    one.say_client_hello()
    await one.some()
    return one


async def inside_tls(here: Proxy) -> Client:
    one = await asked_to_begin_tls(here)
    await one.secure()
    one.send(b"EHLO inside\r\n")
    await one.hear(b"250 ")
    return one


async def in_content_inside_tls(here: Proxy) -> Client:
    one = await inside_tls(here)
    one.send(ENVELOPE, b"DATA\r\n")
    await one.hear(b"354 go\r\n")
    one.send(b"half a mess")
    await within_a_second(lambda: here.mta.open[0]._unread)
    return one


async def leaving_replies_unread_inside_tls(here: Proxy) -> Client:
    return await _leaving_replies_unread(here, await inside_tls(here))


async def close_notify_inside_tls(here: Proxy) -> Client:
    one = await inside_tls(here)
    one.send(ENVELOPE)
    await got(here, b"MAIL FROM:<a@a>")
    one.send_close_notify()
    one.half_close()
    await within_a_second(lambda: here.session.pipeline.client_ended)
    return one


async def in_the_mtas_handshake(here: Proxy) -> Client:
    one = await said(here, b"EHLO c\r\n")
    await got(here, b"STARTTLS")
    return one


async def in_the_mtas_first_handshake(here: Proxy) -> Client:
    one = here.client()
    await within_a_second(lambda: here.mta.open)
    return one


async def in_a_header(here: Proxy) -> Client:
    one = await connected(here)
    one.send(b"PROXY TCP4 192.0")
    return one


async def in_a_tunnel(here: Proxy) -> Client:
    one = await greeted(here)
    one.send(b"EHLO c\r\nSTARTTLS\r\n")
    await one.hear(b"220 go\r\n")
    one.say_client_hello()
    return one


async def in_a_tunnel_to_an_mta_that_does_not_read(here: Proxy) -> Client:
    one = await greeted(here)
    one.send(b"EHLO c\r\nSTARTTLS\r\n")
    await one.hear(b"220 go\r\n")
    here.mta.open[0].transport.pause_reading()
    await within_a_second(lambda: one.flood(CHUNK) or not here.session.client.is_reading())
    return one


async def introduced(here: Proxy) -> Client:
    one = await greeted(here)
    one.send(b"EHLO front\r\nXCLIENT ADDR=127.0.0.9\r\n")
    await one.hear(b"220 mx\r\n")
    return one


@dataclass(frozen=True)
class State:
    """A state of a session, and how it ends.

    reach: how it is reached.  silent: what the MTA leaves unanswered.  listener, backend, limits:
    settings.  ehlo: the MTA's reply to EHLO.
    reset, half_close: the reasons in the log after either by the client; empty if the client can't.
    mta: the reason after either by the MTA; empty if it has no connection.
    silence: the reason when nothing more comes; `limit` is the setting that ends it.
    """

    reach: Callable[[Proxy], Awaitable[Client]]
    silent: set[bytes] = field(default_factory=set)
    listener: str = ""
    backend: str = ""
    limits: str = ""
    reset: str = "client_lost"
    half_close: str = "client_closed"
    limit: str = "client"
    silence: str = "client_time_limit"
    ehlo: bytes = b""
    mta: str = "backend_lost"


STATES = {
    "connecting": State(
        connected,
        half_close="backend_unavailable",
        limit="connect",
        silence="backend_unavailable",
        mta="",
    ),
    "before the greeting": State(
        connected,
        {GREETING},
        limit="greeting",
        silence="greeting_time_limit",
        mta="backend_unavailable",
    ),
    "idle": State(greeted),
    "in a group": State(in_a_group, {b"MAIL"}, limit="command", silence="command_time_limit"),
    "after DATA": State(
        asked_for_data,
        {b"DATA"},
        half_close="client_lost",
        limit="data",
        silence="data_time_limit",
    ),
    "asked for credentials": State(asked_for_credentials),
    "in content": State(
        in_content, half_close="client_lost", limit="content", silence="content_time_limit"
    ),
    "in a payload": State(
        in_a_payload, half_close="client_lost", limit="content", silence="content_time_limit"
    ),
    "after the dot": State(
        after_the_dot,
        {CONTENT},
        half_close="quit",
        limit="end_of_data",
        silence="end_of_data_time_limit",
    ),
    "after QUIT": State(
        quitting,
        {b"QUIT"},
        reset="quit",
        half_close="quit",
        limit="command",
        silence="command_time_limit",
    ),
    "closed by the proxy": State(
        lingering,
        reset="forbidden_command",
        half_close="forbidden_command",
        limit="",
        silence="forbidden_command",
        mta="",
    ),
    "leaving replies unread": State(leaving_replies_unread, half_close="client_closed"),
    "before an MTA that does not read": State(
        before_an_mta_that_does_not_read,
        half_close="client_lost",
        limit="content",
        silence="backend_time_limit",
    ),
    "with a full queue": State(
        with_a_full_queue,
        {b"NOOP"},
        limits="queue_bytes = 12288",
        half_close="client_closed",
        limit="command",
        silence="command_time_limit",
    ),
    "too fast": State(
        with_a_full_queue, limits="commands_per_second = 1", half_close="", silence=""
    ),
    "half-closed": State(
        half_closed,
        {b"MAIL"},
        half_close="client_closed",
        limit="command",
        silence="command_time_limit",
    ),
    "asked to begin TLS": State(
        asked_to_begin_tls,
        listener=STARTTLS,
        reset="client_tls_failed",
        half_close="client_tls_failed",
        limit="tls_handshake",
        silence="client_tls_failed",
    ),
    "in its handshake": State(
        in_its_handshake,
        listener=STARTTLS,
        reset="client_tls_failed",
        half_close="client_tls_failed",
        limit="tls_handshake",
        silence="client_tls_failed",
    ),
    "before implicit TLS": State(
        connected,
        listener=IMPLICIT,
        reset="client_lost",
        half_close="client_lost",
        limit="tls_handshake",
        silence="client_hello_time_limit",
        mta="",
    ),
    "in its first handshake": State(
        in_its_first_handshake,
        listener=IMPLICIT,
        reset="client_tls_failed",
        half_close="client_tls_failed",
        limit="tls_handshake",
        silence="client_tls_failed",
        mta="",
    ),
    "idle inside TLS": State(inside_tls, listener=STARTTLS, half_close="client_lost"),
    "in content inside TLS": State(
        in_content_inside_tls,
        listener=STARTTLS,
        half_close="client_lost",
        limit="content",
        silence="content_time_limit",
    ),
    "leaving replies unread inside TLS": State(
        leaving_replies_unread_inside_tls, listener=STARTTLS, half_close="client_lost"
    ),
    "after its close_notify inside TLS": State(
        close_notify_inside_tls,
        {b"MAIL"},
        listener=STARTTLS,
        half_close="client_closed",
        limit="command",
        silence="command_time_limit",
    ),
    "in the MTA's handshake": State(
        in_the_mtas_handshake,
        {HANDSHAKE},
        backend='tls = "starttls"\nca_file = "@/ca.pem"',
        half_close="backend_tls_failed",
        limit="tls_handshake",
        silence="backend_tls_failed",
        ehlo=TO_STARTTLS,
        mta="backend_tls_failed",
    ),
    "in the MTA's first handshake": State(
        in_the_mtas_first_handshake,
        {GREETING, HANDSHAKE},
        backend='tls = "implicit"\nca_file = "@/ca.pem"',
        half_close="backend_unavailable",
        limit="tls_handshake",
        silence="backend_unavailable",
        mta="backend_unavailable",
    ),
    "before its PROXY header": State(
        connected,
        listener='proxy_protocol = ["127.0.0.0/8"]',
        half_close="client_lost",
        limit="proxy_header",
        silence="proxy_header_time_limit",
        mta="",
    ),
    "in its PROXY header": State(
        in_a_header,
        listener='proxy_protocol = ["127.0.0.0/8"]',
        half_close="bad_proxy_header",
        limit="proxy_header",
        silence="proxy_header_time_limit",
        mta="",
    ),
    "in a tunnel": State(
        in_a_tunnel,
        {HANDSHAKE},
        listener='tls = "passthrough"',
        half_close="client_closed",
        ehlo=TO_STARTTLS,
    ),
    "in a tunnel to an MTA that does not read": State(
        in_a_tunnel_to_an_mta_that_does_not_read,
        {HANDSHAKE},
        listener='tls = "passthrough"',
        half_close="client_closed",
        ehlo=TO_STARTTLS,
    ),
    "introduced by XCLIENT": State(introduced, listener='xclient = ["127.0.0.9/32"]'),
}
# With BDAT that becomes DATA the same holds.
STATES |= {
    name: replace(state, backend='chunking = "add"', ehlo=b"250 mx\r\n")
    for name, state in {
        "after DATA for a chunk": replace(STATES["after DATA"], reach=sent_a_first_chunk),
        "between chunks": State(between_chunks, half_close="client_lost"),
        "in a chunk": replace(STATES["in content"], reach=in_a_chunk),
        "after the last chunk": replace(STATES["after the dot"], reach=after_the_last_chunk),
    }.items()
}


async def come_to(name: str, here: Proxy, timeouts: str = "") -> Client:
    """Start the proxy, and bring a session to a state."""
    state = STATES[name]
    here.mta.silent = set(state.silent)
    if state.ehlo:
        here.mta.replies[b"EHLO"] = state.ehlo
    if name == "connecting":
        here.mta.start_as_black_hole()
    await here.start(
        listener=state.listener, backend=state.backend, limits=state.limits, timeouts=timeouts
    )
    return await state.reach(here)


@pytest.mark.parametrize("name", STATES)
@on_uvloop
async def test_nothing_is_held_of_a_reset_client(name: str, tmp_path: Path) -> None:
    async with proxy(tmp_path) as here:
        one = await come_to(name, here)
        assert here.held() or here.kept(), "there is nothing to let go of"
        one.reset()
        here.mta.listen()
        await here.lets_go()
        assert here.reasons()[-1] == STATES[name].reset


@pytest.mark.parametrize("name", [name for name in STATES if STATES[name].half_close])
@on_uvloop
async def test_nothing_is_held_of_a_half_closed_client_once_it_is_served(
    name: str, tmp_path: Path
) -> None:
    async with proxy(tmp_path) as here:
        one = await come_to(name, here, "connect = 0.3\ntls_handshake = 1")
        one.half_close()
        here.mta.release()
        await one.rest(20.0)
        await here.lets_go()
        assert here.reasons()[-1] == STATES[name].half_close


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in STATES if STATES[name].silence])
@on_uvloop
async def test_nothing_is_held_of_inactive_peers_after_the_time_limit(
    name: str, tmp_path: Path
) -> None:
    limit = STATES[name].limit
    async with proxy(tmp_path) as here:
        await come_to(name, here, f"{limit} = 0.5" if limit else "")
        here.expect_closing_within(0.2)
        await within_a_second(here.reasons)
        here.mta.listen()
        await here.lets_go()
        assert here.reasons()[-1] == STATES[name].silence


OF_THE_MTA = {"slots", "sessions of a server", "MTA connections"}


@pytest.mark.parametrize("name", [name for name in STATES if STATES[name].mta])
@on_uvloop
async def test_nothing_is_held_of_a_reset_mta(name: str, tmp_path: Path) -> None:
    async with proxy(tmp_path) as here:
        one = await come_to(name, here)
        await within_a_second(lambda: here.mta.open)
        here.mta.open[-1].reset()
        await within_a_second(lambda: not OF_THE_MTA & here.held().keys(), here.held)
        await one.rest(20.0)
        one.close()
        await here.lets_go()
        assert here.reasons()[-1] == STATES[name].mta


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in STATES if STATES[name].mta])
@on_uvloop
async def test_nothing_is_held_of_a_half_closed_mta_once_the_client_has_closed(
    name: str, tmp_path: Path
) -> None:
    async with proxy(tmp_path) as here:
        one = await come_to(name, here)
        await within_a_second(lambda: here.mta.open)
        here.mta.open[-1].half_close()
        here.mta.listen()
        await one.rest(20.0)
        one.close()
        await here.lets_go()
        in_a_tunnel = "tunnel" in name  # where the client has the last word
        assert here.reasons()[-1] == ("client_closed" if in_a_tunnel else STATES[name].mta)


@pytest.mark.parametrize("tls", ["", STARTTLS], ids=["plain", "inside TLS"])
@on_uvloop
async def test_of_a_client_that_quits_after_a_message_nothing_is_held(
    tls: str, tmp_path: Path
) -> None:
    async with proxy(tmp_path) as here:
        await here.start(listener=tls)
        one = await (inside_tls(here) if tls else greeted(here))
        one.send(ENVELOPE, b"DATA\r\n")
        await one.hear(b"354 go\r\n")
        one.send(b"hello\r\n.\r\nQUIT\r\n")
        await one.hear(b"221 bye\r\n")
        one.close()
        await here.lets_go()
        assert here.reasons() == ["quit"]


@pytest.mark.parametrize("end", [Client.reset, Client.half_close], ids=["reset", "half-close"])
@on_uvloop
async def test_nothing_is_held_of_a_client_lost_in_the_queue(
    end: Callable[[Client], None], tmp_path: Path
) -> None:
    async with proxy(tmp_path) as here:
        await here.start(backend="max_connections = 1")
        first = await greeted(here)
        held = here.held()
        waiting = here.client()
        await within_a_second(lambda: here.held()["slots"] == 2)
        end(waiting)
        await within_a_second(lambda: here.held() == held, here.held)
        assert here.reasons() == ["client_lost"]
        first.reset()
        await here.lets_go()


@on_uvloop
async def test_a_lost_mta_that_refused_the_content_keeps_no_slot(
    tmp_path: Path,
) -> None:
    """The client is still read to its end of data, to get the reply."""
    async with proxy(tmp_path) as here:
        await here.start()
        one = await in_content(here)
        here.mta.open[0].transport.write(b"452 full\r\n")
        await within_a_second(lambda: here.session.pipeline.matcher.discards_content)
        here.mta.open[0].reset()
        await within_a_second(lambda: not OF_THE_MTA & here.held().keys(), here.held)
        one.send(b"age\r\n.\r\n")
        assert await one.rest() == b"452 full\r\n"
        one.close()
        await here.lets_go()
        assert here.reasons() == ["content_refused"]
