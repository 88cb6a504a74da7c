"""TLS and arrival, with real sockets and real handshakes: what the fake transports can't show."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trustme

from smtpproxy.app import App
from smtpproxy.config import load

Say = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]


class Backend:
    """A scripted MTA: `replies` to each verb; STARTTLS is done if it is answered with 220."""

    def __init__(self, context: ssl.SSLContext, *, offers: bool = True) -> None:
        self._context = context
        self.offers = offers
        self.injects = b""
        self.heard: list[bytes] = []
        self.secure = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        plain = writer.transport
        try:
            await self._converse(reader, writer)
        except (OSError, ssl.SSLError):
            pass
        finally:
            writer.transport.abort()
            plain.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mx\r\n")
        while line := await reader.readline():
            self.heard.append(line.rstrip())
            verb = line[:4].upper()
            if line.startswith(b"STARTTLS"):
                writer.write(b"220 go\r\n" + self.injects)
                await writer.start_tls(self._context)
                self.secure += 1
            elif verb == b"EHLO":
                offer = b"250-STARTTLS\r\n" if self.offers and not self.secure else b""
                writer.write(b"250-mx\r\n" + offer + b"250-REQUIRETLS\r\n250 AUTH PLAIN\r\n")
            elif verb == b"DATA":
                writer.write(b"354 go\r\n")
                while await reader.readline() != b".\r\n":
                    pass
                writer.write(b"250 queued\r\n")
            else:
                writer.write((b"221 " if verb == b"QUIT" else b"250 ") + verb + b"\r\n")


class Stage:
    """A backend, the proxy in front of it, and certificates."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(work / "ca.pem")
        for name in ("mx.example", "other.example", "127.0.0.1"):
            issued = self.authority.issue_cert(name)
            issued.private_key_and_cert_chain_pem.write_to_path(work / f"{name}.pem")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(work / "127.0.0.1.pem")
        self.backend = Backend(context)
        self.client_context = ssl.create_default_context(cafile=work / "ca.pem")
        self._server: asyncio.Server | None = None
        self.app: App | None = None

    async def start(self, listener: str = "", backend: str = "", timeouts: str = "") -> int:
        """Start both, with these settings; return the proxy's port."""
        self._server = await asyncio.start_server(self.backend.serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        file = self.work / "smtpproxy.toml"
        text = (
            '[[listener]]\naddress = "127.0.0.1:0"\n' + listener + "\n"
            f'[backends.mx]\nservers = ["127.0.0.1:{port}"]\n{backend}\n[timeouts]\n{timeouts}\n'
        )
        file.write_text(text.replace("@", str(self.work)))
        self.app = App(load(file))
        await self.app.start()
        return int(self.app.addresses[0].rpartition(":")[2])

    async def stop(self) -> None:
        if self.app is not None:
            await self.app.stop()
        if self._server is not None:
            self._server.close()


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    made = Stage(tmp_path)
    yield made
    await made.stop()


STARTTLS = 'tls = "starttls"\ncertificate = "@/mx.example.pem"'
IMPLICIT = 'tls = "implicit"\ncertificate = "@/mx.example.pem"'


class Client:
    """A client of the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, *commands: bytes) -> list[bytes]:
        """Send commands in one group, and return the replies, each joined to one line."""
        self.writer.write(b"".join(command + b"\r\n" for command in commands))
        return [await self.reply() for _ in commands]

    async def reply(self) -> bytes:
        line = await self.reader.readline()
        whole = line
        while line[3:4] == b"-":
            line = await self.reader.readline()
            whole += line
        return whole.rstrip()

    async def secure(self, stage: Stage, name: str = "mx.example") -> None:
        assert await self.ask(b"STARTTLS") == [b"220 2.0.0 Ready to start TLS"]
        await self.writer.start_tls(stage.client_context, server_hostname=name)

    async def rest(self) -> bytes:
        with contextlib.suppress(ConnectionResetError):
            return await self.reader.read()
        return b"reset"


@contextlib.asynccontextmanager
async def client(port: int, **tls: object) -> AsyncIterator[Client]:
    async with asyncio.timeout(20):
        streams = await asyncio.open_connection("127.0.0.1", port, **tls)  # type: ignore[arg-type]
        made = Client(*streams)
        plain = made.writer.transport
        try:
            yield made
        finally:
            made.writer.close()
            with contextlib.suppress(OSError, ssl.SSLError):
                await made.writer.wait_closed()
            plain.abort()


GROUP = (b"EHLO c", b"MAIL FROM:<a@a>", b"RCPT TO:<b@b>", b"DATA")


async def deliver(one: Client) -> None:
    """Send a message in groups."""
    replies = await one.ask(*GROUP)
    assert [reply[:3] for reply in replies] == [b"250", b"250", b"250", b"354"]
    assert await one.ask(b"hello\r\n.", b"QUIT") == [b"250 queued", b"221 QUIT"]


async def test_groups_are_served_inside_tls_as_outside(stage: Stage) -> None:
    async with client(await stage.start(STARTTLS)) as one:
        await one.reply()
        replies = await one.ask(b"EHLO before")
        assert b"250-STARTTLS\r\n250 PIPELINING" in replies[0]
        await one.secure(stage)
        await deliver(one)
        assert await one.rest() == b""
    assert stage.backend.heard[:3] == [b"EHLO before", b"EHLO c", b"MAIL FROM:<a@a>"]
    assert not stage.backend.secure


async def test_a_certificate_is_chosen_by_name(stage: Stage) -> None:
    sni = '[listener.sni."*.example"]\ncertificate = "@/other.example.pem"'
    port = await stage.start(f"{STARTTLS}\n{sni}")
    async with client(port) as one:
        await one.reply()
        await one.secure(stage, "other.example")
    async with client(port) as one:
        await one.reply()
        with pytest.raises(ssl.SSLCertVerificationError):
            await one.secure(stage, "mx.example")  # *.example goes ahead


async def test_a_session_may_begin_with_tls(stage: Stage) -> None:
    port = await stage.start(IMPLICIT)
    inside = {"ssl": stage.client_context, "server_hostname": "mx.example"}
    async with client(port, **inside) as one:
        assert await one.reply() == b"220 mx"
        await deliver(one)


async def test_old_versions_are_refused(stage: Stage) -> None:
    port = await stage.start(IMPLICIT)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        async with client(port, ssl=old, server_hostname="mx.example"):
            pass


async def test_octets_behind_starttls_end_the_session(stage: Stage) -> None:
    """CVE-2011-0411: nothing of them is ever used."""
    async with client(await stage.start(STARTTLS)) as one:
        await one.reply()
        one.writer.write(b"STARTTLS\r\nMAIL FROM:<evil@x>\r\n")
        assert await one.rest() == b"554 5.5.0 Error: SMTP protocol synchronization\r\n"
    assert stage.backend.heard == []


async def test_a_handshake_that_does_not_come_is_given_up(stage: Stage) -> None:
    async with client(await stage.start(STARTTLS, timeouts="tls_handshake = 0.2")) as one:
        await one.reply()
        await one.ask(b"STARTTLS")
        assert await one.rest() in (b"", b"reset")


async def test_what_is_no_handshake_ends_the_session(stage: Stage) -> None:
    async with client(await stage.start(STARTTLS)) as one:
        await one.reply()
        await one.ask(b"STARTTLS")
        one.writer.write(b"EHLO in plaintext\r\n")
        assert b"250" not in await one.rest()


@pytest.mark.parametrize("tls", ["opportunistic", "starttls"])
async def test_the_backend_is_secured_for_a_client_in_plaintext(stage: Stage, tls: str) -> None:
    verified = 'ca_file = "@/ca.pem"' if tls == "starttls" else ""
    async with client(await stage.start(backend=f'tls = "{tls}"\n{verified}')) as one:
        await one.reply()
        await deliver(one)
    assert stage.backend.heard[:4] == [b"EHLO c", b"STARTTLS", b"EHLO c", b"MAIL FROM:<a@a>"]
    assert stage.backend.secure == 1


async def test_requiretls_is_offered_with_tls_on_both_sides(stage: Stage) -> None:
    port = await stage.start(STARTTLS, 'tls = "starttls"\nca_file = "@/ca.pem"')
    async with client(port) as one:
        await one.reply()
        assert b"REQUIRETLS" not in (await one.ask(b"EHLO c"))[0]
        await one.secure(stage)
        assert b"REQUIRETLS" in (await one.ask(b"EHLO c"))[0]


@pytest.mark.parametrize(
    "trust",
    ["", 'ca_file = "@/ca.pem"\nserver_name = "mx.example"'],
    ids=["unknown authority", "another name"],
)
async def test_a_backend_that_is_not_who_it_should_be_gets_no_mail(
    stage: Stage, trust: str
) -> None:
    async with client(await stage.start(backend=f'tls = "starttls"\n{trust}')) as one:
        await one.reply()
        replies = await one.ask(b"EHLO c")
        assert replies[0].startswith(b"421 4.7.5 ")
    assert stage.backend.heard == [b"EHLO c", b"STARTTLS"]


async def test_replies_injected_behind_the_backends_220_end_the_session(stage: Stage) -> None:
    stage.backend.injects = b"250-mx\r\n250 AUTH PLAIN\r\n"
    async with client(await stage.start(backend='tls = "opportunistic"')) as one:
        await one.reply()
        replies = await one.ask(b"EHLO c")
        assert replies[0][:4] == b"421 "
    assert b"MAIL" not in b"".join(stage.backend.heard)


async def test_passed_through_it_is_the_backends_tls(stage: Stage) -> None:
    async with client(await stage.start('tls = "passthrough"')) as one:
        await one.reply()
        assert b"STARTTLS" in (await one.ask(b"EHLO c"))[0]
        assert await one.ask(b"STARTTLS") == [b"220 go"]
        await one.writer.start_tls(stage.client_context, server_hostname="127.0.0.1")
        replies = await one.ask(b"EHLO inside")
        assert b"PIPELINING" not in replies[0]
        assert await one.ask(b"QUIT") == [b"221 QUIT"]
    assert stage.backend.secure == 1


HEADER = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 25\r\n"
BEHIND = 'proxy_protocol = ["127.0.0.0/8"]'


async def test_a_header_and_the_commands_behind_it_may_come_at_once(stage: Stage) -> None:
    async with client(await stage.start(BEHIND)) as one:
        one.writer.write(HEADER)
        assert await one.reply() == b"220 mx"
        await deliver(one)


@pytest.mark.parametrize(
    "octets",
    [b"EHLO c\r\n", b"PROXY TCP4 1\r\n", HEADER.replace(b"\r\n", b"\n"), b"\x16\x03\x01", b""],
)
async def test_without_a_good_header_there_is_no_session(stage: Stage, octets: bytes) -> None:
    port = await stage.start(BEHIND, timeouts="proxy_header = 0.2")
    async with client(port) as one:
        one.writer.write(octets)
        assert await one.rest() in (b"", b"reset")
    assert stage.backend.heard == []


async def test_a_second_header_is_a_bad_command(stage: Stage) -> None:
    async with client(await stage.start(BEHIND)) as one:
        one.writer.write(HEADER + HEADER + b"QUIT\r\n")
        assert (await one.reply(), await one.reply()) == (b"220 mx", b"250 PROX")


async def test_a_strangers_header_is_a_bad_command(stage: Stage) -> None:
    async with client(await stage.start('proxy_protocol = ["192.0.2.0/24"]')) as one:
        assert await one.reply() == b"220 mx"
        assert await one.ask(HEADER.rstrip()) == [b"250 PROX"]


async def test_a_handshake_may_come_in_one_segment_with_the_header(stage: Stage) -> None:
    """As HAProxy sends it when the client was quick."""
    port = await stage.start(f"{IMPLICIT}\n{BEHIND}")
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        read, written = ssl.MemoryBIO(), ssl.MemoryBIO()
        inside = stage.client_context.wrap_bio(read, written, server_hostname="mx.example")
        header = HEADER
        while True:
            try:
                inside.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(header + written.read())
                header = b""
                read.write(await reader.read(65536))
        writer.write(written.read())
        while True:
            try:
                assert inside.read() == b"220 mx\r\n"
                break
            except ssl.SSLWantReadError:
                read.write(await reader.read(65536))
        writer.close()
        await writer.wait_closed()
