"""Runs `smtpproxy demo --serve`: the legacy MTA without and with the proxy, for the user's client.

It prints both addresses with example commands, and draws each session when it ends.
"""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rich.console import Console, Group
from rich.text import Text

from smtpproxy.demo.demo_report import WAYS, Lines, waits_text
from smtpproxy.demo.harness import proxy_before
from smtpproxy.demo.legacy import FAILINGS, LegacyMTA, LegacySession
from smtpproxy.demo.simulated_network import SimulatedLink, SimulatedNetwork
from smtpproxy.demo.timeline_rows import timeline
from smtpproxy.timeline.labels import BAD, GOOD, QUIET


async def stay_up(
    console: Console, *, rtt_s: float, failing: str, port: int = 0, admin: str = ""
) -> int:
    """Serve until SIGINT or SIGTERM, and draw each session when it ends.

    Args:
        console: Where to print.
        rtt_s: The simulated round-trip time.
        failing: The MTA's fault, a key of `FAILINGS`.
        port: Where the client connects to the proxy; 0: a free port.
        admin: Where to serve the live page; empty: nowhere.

    Returns:
        The exit code, 0.

    Raises:
        ConfigError: `admin` is no address for it.
        OSError: An address is in use.
    """
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted.set)

    def draw(link: SimulatedLink, session: LegacySession | None) -> None:
        drawn = timeline(link.groups, link.opened_at, session.events if session else None)
        way = WAYS[session is not None]
        title = Text(f"A session {way}: {waits_text(drawn.waits, drawn.seconds)}", "bold")
        console.print(Lines(["", title, drawn]))

    def draw_direct(link: SimulatedLink) -> None:
        direct.forget(link)
        straight_mta.forget_all()
        draw(link, None)

    def draw_proxied(link: SimulatedLink) -> None:
        proxied.forget(link)
        session = _session_of(link, mta)
        if session is not None:
            mta.forget(session)
        draw(link, session)

    listeners: list[str] = []
    mta = LegacyMTA(failing=failing, refused=_refused)
    straight_mta = LegacyMTA(failing=failing, refused=_refused)
    async with mta, straight_mta, _proxy(mta.address, admin, listeners) as proxy:
        direct = SimulatedNetwork(straight_mta.address, rtt_s, draw_direct)
        proxied = SimulatedNetwork(proxy, rtt_s, draw_proxied, port)
        async with direct, proxied:
            listeners.append(proxied.address)
            advice = _advice(direct.address, proxied.address, rtt_s, failing, admin)
            console.print(advice, soft_wrap=True)  # commands can be copied as whole lines
            await interrupted.wait()
            direct.ignore_closed()
            proxied.ignore_closed()
    return 0


@asynccontextmanager
async def _proxy(backend: str, admin: str, listeners: list[str]) -> AsyncIterator[str]:
    """Run the proxy, with the live page if it is wanted; yield the proxy's address."""
    if admin:
        from smtpproxy.demo.live_page import proxy_with_page  # and with it the HTTP library

        async with proxy_with_page(backend, admin, listeners) as address:
            yield address
    else:
        async with proxy_before(backend) as address:
            yield address


def _refused(address: bytes) -> bytes | None:
    return b"550 <" + address + b">... User unknown" if address.startswith(b"bad") else None


def _session_of(link: SimulatedLink, mta: LegacyMTA) -> LegacySession | None:
    """Return the MTA's session for this link: the proxy opens one per client, in order."""
    return next((s for s in mta.sessions if s.events[0].at >= link.opened_at), None)


def _advice(direct: str, proxied: str, rtt_s: float, failing: str, admin: str) -> Group:
    host, _, port = proxied.rpartition(":")
    group = r"EHLO me\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nRSET\r\nQUIT\r\n"
    send = "s.sendmail('a@b.example', ['c@d.example'], 'Subject: hello'); s.quit()"
    advice = Text.assemble(
        (f"A legacy MTA without PIPELINING, {rtt_s * 1000:g} ms away.\n", "bold"),
        f"Its fault: it {FAILINGS[failing]}.\n\n",
        ("  through smtpproxy  ", "bold"),
        (f"{proxied}\n", GOOD),
        ("  directly           ", "bold"),
        (f"{direct}\n", BAD),
        ("  live page          " if admin else "", "bold"),
        f"http://{admin}/\n\n" if admin else "\n",
        ("Send something; recipients that begin with `bad` are refused:\n\n", QUIET),
        f"swaks --pipeline -s {host} -p {port} -f a@b.example -t bad@d.example,c@d.example\n\n",
        f"printf '{group}' |\n  nc -N {host} {port}\n\n",
        f"python3 -c \"import smtplib; s = smtplib.SMTP('{host}', {port}); {send}\"\n\n",
        ("Each session is drawn when it ends. Press Ctrl-C to stop.", QUIET),
    )
    return Group(*advice.split("\n"))
