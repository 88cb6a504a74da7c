"""Hostile peers on both sides under load: honest clients are served, and nothing stays held.

About $SMTPPROXY_CHAOS_S seconds; another course of it: $SMTPPROXY_CHAOS_SEED.
"""

import asyncio
import os
import random
from pathlib import Path

import pytest

from smtpproxy.net.proxy_protocol import read_header
from tests.chaos.hostile import Attack, HostileMta, Ports, deliver
from tests.net.raw import Client, Mta, authority, on_uvloop
from tests.support.processes import eventually
from tests.support.program import Program
from tests.support.scrape import scrape, total

SECONDS = float(os.environ.get("SMTPPROXY_CHAOS_S", "6"))
SEED = int(os.environ.get("SMTPPROXY_CHAOS_SEED", "1"))
ATTACKERS = 24
CLIENTS = int(SECONDS * 2)
"""How many each attacker sends, one after the other."""
SLOTS = 30
ADDRESSES = tuple(f"127.0.1.{number}" for number in range(1, 9))
NAMED, HONEST = "127.0.2.1", "127.0.3.1"
CERTIFICATE = 'certificate = "@/mx.pem"'
LISTENERS = {
    "plain": "",
    "starttls": f'tls = "starttls"\n{CERTIFICATE}',
    "implicit": f'tls = "implicit"\n{CERTIFICATE}',
    "header": 'proxy_protocol = ["127.0.1.0/24"]',
    "xclient": 'xclient = ["127.0.1.0/24"]',
}
CHECK = {b"EHLO proxy.example", b"QUIT"}
"""The proxy's own connection: it checks whether a failed server is up again."""
LIMIT_S = 20
"""Longer than anything may be held for a lost client, so that no time limit frees it."""
LIMITS = ("greeting", "command", "data", "content", "end_of_data", "client", "tls_handshake")


def settings(work: Path, hostile: Mta, honest: Mta) -> Path:
    certificate = authority().issue_cert("mx.example")
    certificate.private_key_and_cert_chain_pem.write_to_path(work / "mx.pem")
    listeners = [
        f'[listeners.{name}]\naddress = "127.0.0.1:0"\nbackend = "hostile"\n{each}\n'
        for name, each in LISTENERS.items()
    ]
    listeners.append('[listeners.honest]\naddress = "127.0.0.1:0"\nbackend = "honest"\n')
    text = (
        'hostname = "proxy.example"\n'
        + "".join(listeners)
        + f'[backends.hostile]\nservers = ["{hostile.address}"]\nidentity = "proxy-v1"\n'
        f"max_connections = {SLOTS}\nmax_wait = 1\nretry_after = 0.1\n"
        f'[backends.honest]\nservers = ["{honest.address}"]\n'
        f"[limits]\nexempt = []\nsessions_per_address = {SLOTS}\n"
        f'[admin]\naddress = "127.0.0.1:0"\n[log]\nlevel = "debug"\n'
        "session_lines_per_second = 0\naddress_lines_per_second = 0\n"
        "[timeouts]\n" + "".join(f"{limit} = {LIMIT_S}\n" for limit in LIMITS)
    )
    file = work / "settings"
    file.write_text(text.replace("@", str(work)))
    return file


def descriptors(program: Program) -> dict[int, int]:
    """Return how many each worker has open."""
    return {pid: len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in program.workers()}


def no_session(admin: str) -> bool | None:
    """Return whether the metrics show no open session."""
    return total(scrape(admin), "sessions") == 0 or None


@pytest.mark.long
@on_uvloop
async def test_honest_clients_are_served_and_nothing_is_held_at_the_end(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    hostile, honest = HostileMta(chance), Mta()
    hostile.expects_header = True
    await hostile.start()
    await honest.start()
    try:
        file = settings(tmp_path, hostile, honest)
        with Program(tmp_path, "-c", file, "-w", "2") as program:
            attack, delivered = await _attack(program, hostile, chance)
            log = program.log()
    finally:
        hostile.stop()
        honest.stop()
    for connection in hostile.connections:
        peer, _ = read_header(connection.header) if connection.header else (None, 0)
        if peer is None:
            assert connection.lines == []
        elif peer.host not in (*ADDRESSES, NAMED):
            assert set(connection.lines) <= CHECK, peer
    for each in log:
        assert each["event"] not in ("internal_error", "library_message", "worker_lost"), each
        assert (each["event"], each.get("backend")) != ("server_down", "honest")
    # It was no idle run.
    reasons = {each["reason"] for each in log if each["event"] == "session_closed"}
    assert {"client_lost", "client_closed", "backend_lost", "client_tls_failed"} <= reasons
    assert delivered > CLIENTS
    assert min(attack.ends.values()) > CLIENTS
    assert hostile.faults > CLIENTS


async def _attack(
    program: Program, hostile: HostileMta, chance: random.Random
) -> tuple[Attack, int]:
    """Attack, and serve honest clients; then check that nothing is held."""
    admin = (await asyncio.to_thread(program.event, "admin_listening"))["address"]
    listening = [await asyncio.to_thread(program.port) for _ in range(len(LISTENERS) + 1)]
    *ways, port = listening
    before = descriptors(program)
    attack = Attack(Ports(*ways), ADDRESSES, NAMED, chance)
    attacking = asyncio.gather(*(attack.run(CLIENTS) for _ in range(ATTACKERS)))
    delivered = 0
    while not attacking.done():
        await deliver(port, HONEST)
        delivered += 1
    await attacking
    hostile.honest = True
    for each in hostile.open:
        each.reset()
    await _nothing_is_held(program, before, hostile)
    # Nor are slots, or sessions of an address: as many as there may be are served.
    clients = [Client(ways[0], ADDRESSES[0]) for _ in range(SLOTS)]
    for each in clients:
        await each.hear(b"220 mx\r\n")
    for each in clients:
        each.reset()
    await _nothing_is_held(program, before, hostile)
    await asyncio.to_thread(eventually, lambda: no_session(admin), "no session in the metrics")
    return attack, delivered


async def _nothing_is_held(program: Program, before: dict[int, int], hostile: HostileMta) -> None:
    """Wait for the workers' descriptors to be those of before; they are not in this loop."""
    async with asyncio.timeout(LIMIT_S - 2):
        while descriptors(program) != before or hostile.open:
            await asyncio.sleep(0.01)
