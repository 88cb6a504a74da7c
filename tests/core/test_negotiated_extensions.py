"""Extensions: which of the backend's offer apply."""

from smtpproxy.core.capabilities import CapabilityFilter
from smtpproxy.core.negotiated_extensions import NegotiatedExtensions
from smtpproxy.core.policy import BackendTls, ClientTls, SessionPolicy

OFFER = b"250-mx\r\n250-PIPELINING\r\n250 CHUNKING\r\n"
TO_CLIENT = b"250-mx\r\n250-CHUNKING\r\n250 PIPELINING\r\n"


def test_nothing_is_in_force_before_ehlo() -> None:
    extensions = NegotiatedExtensions(SessionPolicy())
    assert not extensions.pipelining
    assert not extensions.chunking


def test_offer_is_in_force_until_helo() -> None:
    extensions = NegotiatedExtensions(SessionPolicy())
    assert extensions.accept_ehlo(OFFER) == TO_CLIENT
    assert extensions.pipelining
    assert extensions.chunking
    extensions.clear()
    assert not extensions.pipelining
    assert not extensions.chunking


def test_next_offer_counts() -> None:
    extensions = NegotiatedExtensions(SessionPolicy())
    extensions.accept_ehlo(OFFER)
    extensions.accept_ehlo(b"250 mx\r\n")
    assert not extensions.pipelining
    assert not extensions.chunking


def test_rules_may_leave_an_offer_unused() -> None:
    extensions = NegotiatedExtensions(
        SessionPolicy(
            use_pipelining=False, capabilities=CapabilityFilter(hide=frozenset([b"CHUNKING"]))
        )
    )
    extensions.accept_ehlo(OFFER)
    assert not extensions.pipelining
    assert not extensions.chunking


def test_requiretls_passes_with_tls_on_both_sides_only() -> None:
    offer = b"250-mx\r\n250 REQUIRETLS\r\n"
    for client in ClientTls:
        for backend in BackendTls:
            for verified in (False, True):
                policy = SessionPolicy(
                    client_tls=client, backend_tls=backend, backend_verified=verified
                )
                both = client is ClientTls.ACTIVE and backend is BackendTls.IMPLICIT
                offered = b"REQUIRETLS" in NegotiatedExtensions(policy).accept_ehlo(offer)
                assert offered == (both and verified)
