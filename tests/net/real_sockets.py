"""A stage with real sockets and real handshakes, for what fakes cannot show."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from smtpproxy.config.loader import load
from smtpproxy.worker.app import App

V1_HEADER, V2_HEADER = 1, 2


class Backend:
    """A scripted MTA that accepts everything.

    offers: what its EHLO reply has besides STARTTLS and AUTH.  injects: what is sent after the 220
    to STARTTLS.  stalls: whether nothing follows it.  owed_header: the version of the PROXY header
    that comes first; 0 for none.  heard, headers: all lines and headers that have come.
    secure: how many connections had TLS.  connections: how many there were.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.offers = [b"REQUIRETLS"]
        self.injects = b""
        self.stalls = False
        self.owed_header = 0
        self.heard: list[bytes] = []
        self.headers: list[bytes] = []
        self.secure = self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        plain = writer.transport
        self.connections += 1
        try:
            await self._converse(reader, writer)
        except (OSError, ssl.SSLError):
            pass
        finally:
            writer.transport.abort()
            plain.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.owed_header == V1_HEADER:
            self.headers.append(await reader.readline())
        elif self.owed_header == V2_HEADER:
            head = await reader.readexactly(16)
            self.headers.append(head + await reader.readexactly(int.from_bytes(head[14:])))
        secure = writer.get_extra_info("ssl_object") is not None
        self.secure += secure
        writer.write(b"220 mx\r\n")
        while line := await reader.readline():
            self.heard.append(line.rstrip())
            verb = line[:4].upper()
            if line.startswith(b"STARTTLS"):
                writer.write(b"220 go\r\n" + self.injects)
                if self.stalls:
                    await reader.read()
                    return
                await writer.start_tls(self.context)
                self.secure += 1
                secure = True
            elif verb == b"EHLO":
                offers = [*self.offers, *([] if secure else [b"STARTTLS"])]
                lines = [b"250-" + each + b"\r\n" for each in (b"mx", *offers)]
                writer.write(b"".join(lines) + b"250 AUTH PLAIN\r\n")
            elif verb == b"DATA":
                writer.write(b"354 go\r\n")
                while await reader.readline() != b".\r\n":
                    pass
                writer.write(b"250 queued\r\n")
            elif verb == b"XCLI":
                writer.write(b"220 mx\r\n")
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
        self.port = 0
        self.app: App | None = None

    def issue(self, file: str, name: str, kind: trustme.KeyType) -> None:
        """Write a certificate for a name, with its key of one kind, to a file."""
        issued = self.authority.issue_cert(name, key_type=kind)
        issued.private_key_and_cert_chain_pem.write_to_path(self.work / file)

    def context_for(self, name: str, *, alternative: bool) -> ssl.SSLContext:
        """Return the context of a server whose certificate has a CN, and maybe it as a SAN, too."""
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = x509.load_pem_x509_certificate(self.authority.cert_pem.bytes())
        signing_key = load_pem_private_key(self.authority.private_key_pem.bytes(), None)
        assert isinstance(signing_key, ec.EllipticCurvePrivateKey)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer.subject)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(issuer.not_valid_before_utc)
            .not_valid_after(issuer.not_valid_after_utc)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), False
            )
        )
        if alternative:
            names = x509.SubjectAlternativeName([x509.DNSName(name)])
            certificate = certificate.add_extension(names, False)
        signed = certificate.sign(signing_key, hashes.SHA256())
        file = self.work / "backend.pem"
        file.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            + signed.public_bytes(Encoding.PEM)
        )
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(file)
        return context

    async def start(
        self, listener: str = "", backend: str = "", timeouts: str = "", limits: str = ""
    ) -> int:
        """Start both, with these settings; return the proxy's port."""
        context = self.backend.context if 'tls = "implicit"' in backend else None
        self._server = await asyncio.start_server(self.backend.serve, "127.0.0.1", 0, ssl=context)
        port = self._server.sockets[0].getsockname()[1]
        file = self.work / "smtpproxy.toml"
        text = (
            '[listeners.smtp]\naddress = "127.0.0.1:0"\n' + listener + "\n"
            f'[backends.mx]\nservers = ["127.0.0.1:{port}"]\n{backend}\n'
            f"[timeouts]\n{timeouts}\n[limits]\n{limits}\n"
            '[log]\nlevel = "debug"\n'
        )
        file.write_text(text.replace("@", str(self.work)))
        self.app = App(load(file))
        await self.app.start()
        self.port = int(self.app.addresses[0].rpartition(":")[2])
        return self.port

    async def stop(self) -> None:
        if self.app is not None:
            await self.app.stop()
        await self.stop_backend()

    async def stop_backend(self) -> None:
        """Stop accepting connections."""
        if self._server is not None:
            self._server.close()


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
            if plain is not made.writer.transport:
                plain.abort()


GROUP = (b"EHLO c", b"MAIL FROM:<a@a>", b"RCPT TO:<b@b>", b"DATA")


async def deliver(one: Client, greeted: int = 0) -> None:
    """Send a message in groups; `greeted` is 1 if EHLO was sent already."""
    replies = await one.ask(*GROUP[greeted:])
    replies += [await one.reply() for _ in range(greeted)]
    assert [reply[:3] for reply in replies] == [b"250", b"250", b"250", b"354"]
    assert await one.ask(b"hello\r\n.", b"QUIT") == [b"250 queued", b"221 QUIT"]
