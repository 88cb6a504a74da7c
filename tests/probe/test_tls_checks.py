"""The TLS checks with real handshakes: versions, certificates, and suggested settings."""

import ssl
import warnings
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.probe.findings import Findings
from smtpproxy.probe.tls_checks import TlsFindings, read_certificate
from smtpproxy.tls.contexts import VERSIONS
from tests.probe.server import Server, Session, examined

DAMAGED = ssl.PEM_cert_to_DER_cert(
    trustme.CA().issue_cert("mx.example", "192.0.2.5").cert_chain_pems[0].bytes().decode()
)


class Keys:
    """A certificate authority that this machine trusts, and one that it does not."""

    def __init__(self, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trusted, self.other = trustme.CA(), trustme.CA()
        self.trusted.cert_pem.write_to_path(work / "ca.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(work / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_DIR", str(work / "none"))

    def context(
        self,
        *names: str,
        authority: trustme.CA | None = None,
        oldest: str = "1.2",
        newest: str = "1.3",
        expired: bool = False,
    ) -> ssl.SSLContext:
        """Return a context for a server with a certificate for these names."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ends = datetime(2020, 1, 1, tzinfo=UTC) if expired else None
        issued = (authority or self.trusted).issue_cert(*names, not_after=ends)
        issued.configure_cert(context)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = VERSIONS[oldest]
            context.maximum_version = VERSIONS[newest]
        if oldest < "1.2":
            context.set_ciphers("ALL:@SECLEVEL=0")
        return context


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keys:
    return Keys(tmp_path, monkeypatch)


def tls_of(server: Server) -> TlsFindings:
    with server:
        found = examined(server)
    assert found.tls is not None
    return found.tls


class TestVersions:
    @pytest.mark.parametrize(
        ("oldest", "newest", "working"),
        [
            ("1.2", "1.3", ["1.3", "1.2"]),
            ("1.0", "1.3", ["1.3", "1.2", "1.1", "1.0"]),
            ("1.0", "1.0", ["1.0"]),
            ("1.3", "1.3", ["1.3"]),
        ],
    )
    @pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
    def test_that_work_are_reported(
        self, oldest: str, newest: str, working: list[str], implicit: bool, keys: Keys
    ) -> None:
        context = keys.context("127.0.0.1", oldest=oldest, newest=newest)
        with Server(context=context, implicit=implicit) as server:
            found = examined(server, implicit_tls=implicit)
        assert found.tls is not None
        assert found.tls.working == working
        assert found.tls.backend is not None
        assert found.tls.backend.minimum_tls == min("1.2", working[0])
        assert found.is_implicit is implicit

    def test_a_refusal_of_starttls_is_reported(self, keys: Keys) -> None:
        server = Server(
            {b"STAR": b"454 not now\r\n"}, capabilities=(b"STARTTLS",), context=keys.context("a.b")
        )
        tls = tls_of(server)
        assert set(tls.versions.values()) == {"STARTTLS was refused: 454 not now"}
        assert tls.backend is None

    def test_plaintext_after_the_220_is_reported(self, keys: Keys) -> None:
        tls = tls_of(Server(context=keys.context("a.b"), injects=b"250 fine\r\n"))
        assert set(tls.versions.values()) == {"it sent plaintext after its 220 reply to STARTTLS"}

    def test_implicit_tls_is_detected(self, keys: Keys) -> None:
        with Server(context=keys.context("127.0.0.1"), implicit=True) as server:
            found = examined(server, timeout_s=1.0)
        assert found.is_implicit
        assert found.tls is not None
        assert found.tls.backend is not None
        assert found.tls.backend.tls == "implicit"


class TestCertificate:
    def test_verified_for_its_address(self, keys: Keys) -> None:
        tls = tls_of(Server(context=keys.context("mx.example", "127.0.0.1")))
        assert tls.unverified == ""
        assert tls.backend is not None
        assert (tls.backend.tls, tls.backend.verify) == ("starttls", True)
        assert tls.certificate is not None
        assert tls.certificate.names == ("mx.example", "127.0.0.1")
        assert not tls.certificate.has_expired

    def test_valid_for_another_name(self, keys: Keys) -> None:
        tls = tls_of(Server(context=keys.context("*.wild.example", "mx.example")))
        assert "not valid for '127.0.0.1'" in tls.unverified
        assert tls.backend is not None
        assert (tls.backend.tls, tls.backend.server_name) == ("starttls", "mx.example")

    @pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
    def test_of_an_unknown_authority(self, implicit: bool, keys: Keys) -> None:
        context = keys.context("127.0.0.1", authority=keys.other)
        with Server(context=context, implicit=implicit) as server:
            found = examined(server, implicit_tls=implicit)
        assert found.tls is not None
        assert found.tls.unverified == "unable to get local issuer certificate"
        assert found.tls.backend is not None
        if implicit:
            assert (found.tls.backend.tls, found.tls.backend.verify) == ("implicit", False)
        else:
            assert found.tls.backend.tls == "opportunistic"

    def test_expired(self, keys: Keys) -> None:
        tls = tls_of(Server(context=keys.context("127.0.0.1", expired=True)))
        assert tls.unverified == "certificate has expired"
        assert tls.certificate is not None
        assert tls.certificate.has_expired
        assert tls.backend is not None
        assert tls.backend.tls == "opportunistic"

    def test_that_is_not_a_certificate(self) -> None:
        assert read_certificate(b"") is None
        assert read_certificate(b"\x30\x82\xff\xff junk") is None

    @given(place=st.integers(0, 10_000), octet=st.integers(0, 255), length=st.integers(0, 10_000))
    def test_that_is_damaged_raises_nothing(self, place: int, octet: int, length: int) -> None:
        octets = bytearray(DAMAGED)
        octets[place % len(octets)] = octet
        read_certificate(bytes(octets))
        read_certificate(DAMAGED[: length % len(DAMAGED)])


class TestInside:
    def test_capabilities_offered_only_there(self, keys: Keys) -> None:
        with Server(script=partial(choosy, context=keys.context("127.0.0.1"))) as server:
            found = examined(server)
        assert found.capabilities == [b"STARTTLS"]
        assert found.inside == [b"AUTH PLAIN"]

    @pytest.mark.parametrize("refused", [b"", b"RCPT"])
    def test_all_checks_run_if_the_server_requires_tls(self, refused: bytes, keys: Keys) -> None:
        script = partial(choosy, context=keys.context("127.0.0.1"), refused=refused)
        with Server(script=script) as server:
            found: Findings = examined(server, relay_to="a@b.example")
        assert found.insists_on_tls
        assert found.undetermined == {}
        assert [reply.code for reply in found.groups[1].replies] == [250, 250, 250, 250]
        assert found.relay is not None
        assert found.relay.would

    def test_a_refusal_inside_tls_too_does_not_require_tls(self, keys: Keys) -> None:
        replies = {b"MAIL": b"530 authenticate\r\n"}
        with Server(replies, context=keys.context("127.0.0.1")) as server:
            assert not examined(server).insists_on_tls

    def test_plaintext_injected_before_tls_is_ignored(self, keys: Keys) -> None:
        assert not (tls_of(Server(context=keys.context("127.0.0.1")))).is_injectable

    def test_plaintext_injected_before_tls_is_executed(self, keys: Keys) -> None:
        """The fault of CVE-2011-0411: one buffer for plaintext and TLS."""
        assert (tls_of(Server(context=keys.context("127.0.0.1"), leaky=True))).is_injectable


def choosy(session: Session, context: ssl.SSLContext, refused: bytes = b"") -> None:
    """Refuse mail outside TLS: all its commands, or only the verb `refused`."""
    session.say(b"220 mx\r\n")
    secure = False
    while session.line():
        if session.verb == b"STAR":
            session.say(b"220 go\r\n")
            session.secure(context)
            secure = True
        elif session.verb == b"EHLO":
            offer = b"AUTH PLAIN" if secure else b"STARTTLS"
            session.say(b"250-mx\r\n250 " + offer + b"\r\n")
        elif session.verb == b"QUIT":
            session.say(b"221 bye\r\n")
        elif session.verb == b"DATA":
            session.say(b"503 no\r\n")
        elif secure or (refused and session.verb != refused):
            session.say(b"250 fine\r\n")
        else:
            session.say(b"550 prohibited\r\n" if refused else b"530 STARTTLS first\r\n")
