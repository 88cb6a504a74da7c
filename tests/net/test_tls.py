"""TLS on both sides, with real handshakes."""

import contextlib
import ssl
import warnings

import pytest
import trustme

from smtpproxy.config.loader import load
from smtpproxy.net.backend.health_check import check
from smtpproxy.net.backend.server_pool import Server
from smtpproxy.net.session_upgrades import SessionUpgrades
from smtpproxy.worker import security_builder
from tests.net.conftest import Logged
from tests.net.real_sockets import IMPLICIT, STARTTLS, V1_HEADER, Stage, client, deliver
from tests.support.compiled import only_pure


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
    """A full name precedes `*`, also if it is in the listener's own certificate."""
    sni = '[listeners.smtp.sni."*.example"]\ncertificate = "@/other.example.pem"'
    port = await stage.start(f"{STARTTLS}\n{sni}")
    for name in ("other.example", "mx.example", "MX.Example"):
        async with client(port) as one:
            await one.reply()
            await one.secure(stage, name)
    async with client(port) as one:
        await one.reply()
        with pytest.raises(ssl.SSLCertVerificationError):
            await one.secure(stage, "third.example")  # whose is that of *.example


async def test_a_certificate_for_the_name_precedes_the_listeners_own(stage: Stage) -> None:
    sni = '[listeners.smtp.sni."mx.example"]\ncertificate = "@/other.example.pem"'
    async with client(await stage.start(f"{STARTTLS}\n{sni}")) as one:
        await one.reply()
        with pytest.raises(ssl.SSLCertVerificationError):
            await one.secure(stage, "mx.example")


async def test_a_session_may_use_implicit_tls(stage: Stage) -> None:
    port = await stage.start(IMPLICIT)
    inside = {"ssl": stage.client_context, "server_hostname": "mx.example"}
    async with client(port, **inside) as one:
        assert await one.reply() == b"220 mx"
        await deliver(one)


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_version_and_cipher_of_both_sides_are_reported(
    stage: Stage, logged: Logged, tls: str
) -> None:
    port = await stage.start(
        STARTTLS.replace("starttls", tls),
        f'tls = "{tls}"\nca_file = "@/ca.pem"',
    )
    inside = {"ssl": stage.client_context, "server_hostname": "mx.example"}
    async with client(port, **(inside if tls == "implicit" else {})) as one:
        await one.reply()
        if tls == "starttls":
            await one.secure(stage)
        await deliver(one)
    reported = logged("tls_started")
    assert [line["side"] for line in reported] == ["client", "backend"]
    assert {line["version"] for line in reported} == {"TLSv1.3"}
    assert all(line["cipher"].startswith("TLS_") for line in reported)


async def test_implicit_tls_with_the_backend_alone_is_reported(
    stage: Stage, logged: Logged
) -> None:
    backend = 'tls = "implicit"\nca_file = "@/ca.pem"'
    async with client(await stage.start("", backend)) as one:
        await one.reply()
        await deliver(one)
    assert [line["side"] for line in logged("tls_started")] == ["backend"]


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


LEGACY = f'{IMPLICIT}\nminimum_tls = "1.0"\nciphers = "legacy"'


def only(version: ssl.TLSVersion, ciphers: str = "DEFAULT:@SECLEVEL=0") -> ssl.SSLContext:
    """Return the context of a client with one version and certain ciphers; nothing is verified."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers(ciphers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    return context


async def agreed(port: int, context: ssl.SSLContext, name: str = "mx.example") -> tuple[str, str]:
    """Return version and cipher of a client's session with implicit TLS."""
    async with client(port, ssl=context, server_hostname=name) as one:
        assert await one.reply() == b"220 mx"
        await deliver(one)
        inside = one.writer.get_extra_info("ssl_object")
        return inside.version(), inside.cipher()[0]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.parametrize("name", ["mx.example", "old.example"], ids=["its own", "by name"])
async def test_old_versions_are_served_if_the_settings_say_so(
    stage: Stage, logged: Logged, version: ssl.TLSVersion, name: str
) -> None:
    """The certificates of `sni` have the security level of the listener, too."""
    sni = '[listeners.smtp.sni."old.example"]\ncertificate = "@/other.example.pem"'
    port = await stage.start(f"{LEGACY}\n{sni}")
    served, cipher = await agreed(port, only(version), name)
    assert served == {"TLSv1": "TLSv1", "TLSv1_1": "TLSv1.1"}[version.name]
    assert logged("message_relayed")[0]["tls"] == f"{served} {cipher}"
    modern = only(ssl.TLSVersion.TLSv1_3)
    assert (await agreed(port, modern, name))[0] == "TLSv1.3"


@pytest.mark.parametrize("minimum", ["1.1", "1.2", "1.3"])
async def test_a_version_below_the_minimum_is_refused(stage: Stage, minimum: str) -> None:
    versions = {"1.1": "TLSv1", "1.2": "TLSv1_1", "1.3": "TLSv1_2"}
    ciphers = "" if minimum == "1.3" else '\nciphers = "legacy"'
    port = await stage.start(f'{IMPLICIT}\nminimum_tls = "{minimum}"{ciphers}')
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        await agreed(port, only(ssl.TLSVersion[versions[minimum]]))
    assert (await agreed(port, only(ssl.TLSVersion.TLSv1_3)))[0] == "TLSv1.3"


@pytest.mark.parametrize(
    ("cipher", "served"),
    [
        ("ECDHE-RSA-AES128-GCM-SHA256", ["modern", "intermediate", "legacy"]),
        ("ECDHE-RSA-AES128-SHA256", ["intermediate", "legacy"]),
        ("ECDHE-RSA-AES128-SHA", ["legacy"]),
        ("AES128-SHA", ["legacy"]),  # RSA key exchange
        ("PSK-AES128-CBC-SHA", []),
    ],
)
@pytest.mark.parametrize("ciphers", ["modern", "intermediate", "legacy"])
async def test_cipher_suites_are_those_of_the_settings(
    stage: Stage, ciphers: str, cipher: str, served: list[str]
) -> None:
    stage.issue("rsa.pem", "mx.example", trustme.KeyType.RSA)
    listener = IMPLICIT.replace("mx.example.pem", "rsa.pem")
    port = await stage.start(f'{listener}\nciphers = "{ciphers}"')
    context = only(ssl.TLSVersion.TLSv1_2, f"{cipher}:@SECLEVEL=0")
    if ciphers in served:
        assert await agreed(port, context) == ("TLSv1.2", cipher)
    else:
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await agreed(port, context)


BOTH = 'certificate = "@/rsa.pem"\necdsa_certificate = "@/ecdsa.pem"'


@pytest.mark.parametrize("by_name", [False, True], ids=["its own", "by name"])
async def test_a_client_gets_the_certificate_whose_key_it_supports(
    stage: Stage, by_name: bool
) -> None:
    stage.issue("rsa.pem", "mx.example", trustme.KeyType.RSA)
    stage.issue("ecdsa.pem", "mx.example", trustme.KeyType.ECDSA)
    listener = LEGACY.replace('certificate = "@/mx.example.pem"', BOTH)
    if by_name:
        listener = f'{LEGACY}\n[listeners.smtp.sni."mx.example"]\n{BOTH}'
    port = await stage.start(listener)
    for key in ("ECDSA", "RSA"):
        context = only(ssl.TLSVersion.TLSv1_2, f"ECDHE-{key}-AES128-GCM-SHA256")
        stage.authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        assert await agreed(port, context) == ("TLSv1.2", f"ECDHE-{key}-AES128-GCM-SHA256")
    both = only(ssl.TLSVersion.TLSv1_2, "DEFAULT")
    assert "-ECDSA-" in (await agreed(port, both))[1]
    assert await agreed(port, only(ssl.TLSVersion.TLSv1, "AES128-SHA:@SECLEVEL=0"))


HELLO_OF_A_SCANNER = bytes.fromhex(
    "16 0301 002f 01 00002b"  # a record of TLS 1.0 with a ClientHello
    "0301" + "5c" * 32 + "00"  # version, random, no session
    "0004 002f 000a 0100"  # RSA key exchange with AES-128 or 3DES, SHA-1; no compression
)
"""TLS 1.0 without any extension, as of a scanner or a device of 2005."""


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize("legacy", [False, True], ids=["by default", "legacy"])
async def test_a_scanners_hello_is_refused_or_answered_in_old_tls(
    stage: Stage, logged: Logged, tls: str, legacy: bool
) -> None:
    stage.issue("rsa.pem", "mx.example", trustme.KeyType.RSA)
    listener = (LEGACY if legacy else IMPLICIT).replace("mx.example.pem", "rsa.pem")
    async with client(await stage.start(listener.replace('"implicit"', f'"{tls}"'))) as one:
        if tls == "starttls":
            await one.reply()
            await one.ask(b"STARTTLS")
        one.writer.write(HELLO_OF_A_SCANNER)
        if legacy:
            head = await one.reader.readexactly(5)
            record = await one.reader.readexactly(int.from_bytes(head[3:], "big"))
            assert head[:3] == bytes((22, 3, 1))
            assert record[0] == 2  # ServerHello
            session = record[38]
            assert record[39 + session : 41 + session] == b"\x00\x2f"
        else:
            assert await one.rest() in (b"", b"reset")
    if not legacy:
        (failed,) = logged("tls_failed" if tls == "starttls" else "client_turned_away")
        assert failed["reason"] == "unsupported protocol"


async def test_octets_after_starttls_end_the_session(stage: Stage) -> None:
    """CVE-2011-0411: nothing of them is ever used."""
    async with client(await stage.start(STARTTLS)) as one:
        await one.reply()
        one.writer.write(b"STARTTLS\r\nMAIL FROM:<evil@x>\r\n")
        assert await one.rest() == b"554 5.5.0 Error: SMTP protocol synchronization\r\n"
    assert stage.backend.heard == []


async def test_a_missing_handshake_reaches_the_time_limit(stage: Stage) -> None:
    async with client(await stage.start(STARTTLS, timeouts="tls_handshake = 0.2")) as one:
        await one.reply()
        await one.ask(b"STARTTLS")
        assert await one.rest() in (b"", b"reset")


async def test_data_other_than_a_handshake_ends_the_session(stage: Stage, logged: Logged) -> None:
    port = await stage.start(STARTTLS)
    async with client(port) as one:
        await one.reply()
        await one.ask(b"STARTTLS")
        one.writer.write(b"EHLO in plaintext\r\n")
        assert b"250" not in await one.rest()
    (failed,) = logged("tls_failed")
    assert failed["side"] == "client"
    assert logged("exchange")[-1]["reply"].endswith("Error: TLS handshake failed")


@pytest.mark.parametrize("tls", ["opportunistic", "starttls"])
async def test_the_backend_is_secured_for_a_client_in_plaintext(stage: Stage, tls: str) -> None:
    verified = 'ca_file = "@/ca.pem"' if tls == "starttls" else ""
    async with client(await stage.start(backend=f'tls = "{tls}"\n{verified}')) as one:
        await one.reply()
        await deliver(one)
    assert stage.backend.heard[:4] == [b"EHLO c", b"STARTTLS", b"EHLO c", b"MAIL FROM:<a@a>"]
    assert stage.backend.secure == 1


VERIFIED = 'ca_file = "@/ca.pem"'


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_requiretls_is_offered_with_tls_on_both_sides(stage: Stage, tls: str) -> None:
    port = await stage.start(STARTTLS, f'tls = "{tls}"\n{VERIFIED}')
    async with client(port) as one:
        await one.reply()
        assert b"REQUIRETLS" not in (await one.ask(b"EHLO c"))[0]
        await one.secure(stage)
        assert b"REQUIRETLS" in (await one.ask(b"EHLO c"))[0]
        assert await one.ask(b"MAIL FROM:<a@a> REQUIRETLS") == [b"250 MAIL"]
    assert b"MAIL FROM:<a@a> REQUIRETLS" in stage.backend.heard


@pytest.mark.parametrize(
    "backend", ['tls = "opportunistic"', 'tls = "starttls"\nverify = false'], ids=str
)
async def test_requiretls_is_not_offered_if_the_backend_is_not_verified(
    stage: Stage, backend: str
) -> None:
    async with client(await stage.start(STARTTLS, backend)) as one:
        await one.reply()
        await one.secure(stage)
        assert b"REQUIRETLS" not in (await one.ask(b"EHLO c"))[0]


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize("alternative", [True, False], ids=["alternative name", "common name"])
async def test_a_common_name_is_no_host_name(stage: Stage, tls: str, alternative: bool) -> None:
    """RFC 9525: a backend's certificate has its name among the alternative ones."""
    stage.backend.context = stage.context_for("mx.internal", alternative=alternative)
    backend = f'tls = "{tls}"\nserver_name = "mx.internal"\n{VERIFIED}'
    async with client(await stage.start(backend=backend)) as one:
        greeting = await one.reply()  # with implicit TLS, it waits for the backend's
        reply = greeting if greeting.startswith(b"421 ") else (await one.ask(b"EHLO c"))[0]
    assert (reply[:4] == b"250-") == alternative
    assert (reply[:4] == b"421 ") != alternative
    assert stage.backend.secure == alternative


async def test_requiretls_is_not_offered_with_tls_on_the_clients_side_alone(stage: Stage) -> None:
    async with client(await stage.start(STARTTLS)) as one:
        await one.reply()
        await one.secure(stage)
        assert b"REQUIRETLS" not in (await one.ask(b"EHLO c"))[0]


async def test_the_backend_may_use_implicit_tls(stage: Stage) -> None:
    port = await stage.start(backend=f'tls = "implicit"\n{VERIFIED}')
    async with client(port) as one:
        assert await one.reply() == b"220 mx"
        await deliver(one)
    assert stage.backend.secure == 1
    assert stage.backend.heard[:2] == [b"EHLO c", b"MAIL FROM:<a@a>"]


@pytest.mark.parametrize(
    "trust",
    ["", f'{VERIFIED}\nserver_name = "mx.example"', f'{VERIFIED}\nminimum_tls = "1.3"'],
    ids=["unknown authority", "another name", "too old"],
)
async def test_a_backend_with_implicit_tls_is_verified_before_anything_is_sent(
    stage: Stage, logged: Logged, trust: str
) -> None:
    stage.backend.context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with client(await stage.start(backend=f'tls = "implicit"\n{trust}')) as one:
        assert (await one.rest()).startswith(b"421 4.4.1 ")
    assert stage.backend.heard == []
    (down,) = logged("server_down")
    assert down["reason"].startswith(("certificate: ", "closed in the TLS handshake"))


async def test_verification_of_the_backend_can_be_switched_off(stage: Stage) -> None:
    async with client(await stage.start(backend='tls = "implicit"\nverify = false')) as one:
        assert await one.reply() == b"220 mx"
        await deliver(one)
    assert stage.backend.secure == 1


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_an_old_backend_needs_a_lower_minimum(stage: Stage, tls: str) -> None:
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        stage.backend.context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        stage.backend.context.maximum_version = ssl.TLSVersion.TLSv1_1
    stage.backend.context.set_ciphers("DEFAULT:@SECLEVEL=0")
    backend = f'tls = "{tls}"\n{VERIFIED}'
    async with client(await stage.start(backend=backend)) as one:
        one.writer.write(b"EHLO c\r\n")
        assert b"421 4." in await one.rest()
    await stage.stop()
    async with client(await stage.start(backend=f'{backend}\nminimum_tls = "1.0"')) as one:
        assert await one.reply() == b"220 mx"
        await deliver(one)
    assert stage.backend.secure == 1


def outdated(stage: Stage) -> None:
    """Make the backend's TLS too old for the proxy's default."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        stage.backend.context.minimum_version = ssl.TLSVersion.TLSv1
        stage.backend.context.maximum_version = ssl.TLSVersion.TLSv1_1


@pytest.mark.parametrize(
    "listener", ["", STARTTLS, IMPLICIT], ids=["in plaintext", "starttls", "implicit"]
)
@pytest.mark.parametrize("identity", ["none", "proxy-v1", "xclient"])
async def test_opportunistic_tls_that_fails_goes_on_in_plaintext(
    stage: Stage, logged: Logged, identity: str, listener: str
) -> None:
    """On a connection of its own, which gets the client's address like the first one."""
    outdated(stage)
    stage.backend.offers = [b"XCLIENT ADDR"]
    stage.backend.owed_header = V1_HEADER if identity == "proxy-v1" else 0
    backend = f'tls = "opportunistic"\nidentity = "{identity}"\nmax_connections = 1'
    port = await stage.start(listener, backend)
    inside = {"ssl": stage.client_context, "server_hostname": "mx.example"}
    async with client(port, **(inside if listener == IMPLICIT else {})) as one:
        await one.reply()
        if listener == STARTTLS:
            await one.ask(b"EHLO c")
            await one.secure(stage)
        await deliver(one)
    heard = stage.backend.heard
    again = [b"XCLIENT ADDR=127.0.0.1", b"EHLO c"] if identity == "xclient" else []
    again += [b"EHLO c"] * (listener == STARTTLS)
    assert heard[:-4] == [b"EHLO c", b"STARTTLS", b"EHLO c", *again]
    assert heard[-4:] == [b"MAIL FROM:<a@a>", b"RCPT TO:<b@b>", b"DATA", b"QUIT"]
    assert (stage.backend.connections, stage.backend.secure) == (2, 0)
    if identity == "proxy-v1":
        first, second = stage.backend.headers
        assert first == second
    (failed,) = logged("tls_failed")
    assert failed["side"] == "backend"
    assert failed["reason"].endswith("; the session goes on in plaintext")
    assert len(logged("message_relayed")) == 1


async def test_a_handshake_that_takes_too_long_goes_on_in_plaintext(stage: Stage) -> None:
    stage.backend.stalls = True
    port = await stage.start("", 'tls = "opportunistic"', timeouts="tls_handshake = 0.2")
    async with client(port) as one:
        await one.reply()
        await deliver(one)
    assert stage.backend.heard[:3] == [b"EHLO c", b"STARTTLS", b"EHLO c"]


@pytest.mark.parametrize("verify", ["true", "false"])
async def test_required_tls_that_fails_never_goes_on_in_plaintext(
    stage: Stage, verify: str
) -> None:
    outdated(stage)
    async with client(await stage.start("", f'tls = "starttls"\nverify = {verify}')) as one:
        await one.reply()
        assert (await one.ask(b"EHLO c"))[0].startswith(b"421 4.7.5 ")
    assert stage.backend.heard == [b"EHLO c", b"STARTTLS"]
    assert stage.backend.connections == 1


async def test_a_server_that_is_gone_after_its_tls_failed_ends_the_session(
    stage: Stage, logged: Logged
) -> None:
    outdated(stage)
    async with client(await stage.start("", 'tls = "opportunistic"')) as one:
        await one.reply()
        await stage.stop_backend()
        assert (await one.ask(b"EHLO c"))[0].startswith(b"421 4.4.2 ")
        assert await one.rest() == b""
    assert stage.backend.heard == [b"EHLO c", b"STARTTLS"]
    (given_up,) = logged("server_given_up")
    assert given_up["reason"]


@pytest.mark.parametrize("tls", ["off", "implicit"])
async def test_an_active_check_uses_implicit_tls(stage: Stage, tls: str) -> None:
    """And to others it sends nothing that it would not send to a client."""
    backend = f'tls = "{tls}"\n{VERIFIED if tls == "implicit" else ""}'
    await stage.start(backend=backend)
    settings = load(stage.work / "smtpproxy.toml")
    mx = settings.backends["mx"]
    server = Server(mx.servers[0], security_builder.backend_transport(settings, mx))
    assert await check(server, "proxy.example", 5.0) == ""
    assert stage.backend.heard == [b"EHLO proxy.example", b"QUIT"]
    assert stage.backend.secure == (tls == "implicit")


@pytest.mark.parametrize(
    "trust",
    ["", 'ca_file = "@/ca.pem"\nserver_name = "mx.example"'],
    ids=["unknown authority", "another name"],
)
async def test_a_backend_with_a_wrong_certificate_gets_no_mail(stage: Stage, trust: str) -> None:
    async with client(await stage.start(backend=f'tls = "starttls"\n{trust}')) as one:
        await one.reply()
        replies = await one.ask(b"EHLO c")
        assert replies[0].startswith(b"421 4.7.5 ")
    assert stage.backend.heard == [b"EHLO c", b"STARTTLS"]


async def test_replies_injected_after_the_backends_220_end_the_session(stage: Stage) -> None:
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


@only_pure
async def test_an_internal_error_after_a_handshake_ends_the_session(
    stage: Stage, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No caller of the handshake's task could close the connections."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    async with client(await stage.start(STARTTLS)) as one:
        assert await one.reply() == b"220 mx"
        await one.ask(b"EHLO c")
        monkeypatch.setattr(SessionUpgrades, "note_tls", fail)
        with contextlib.suppress(OSError):  # as it may be closed before the handshake is over here
            await one.secure(stage)
            assert await one.rest() in (b"", b"reset")
    assert [line["reason"] for line in logged("session_closed")] == ["internal_error"]
    assert len(logged("internal_error")) == 1
