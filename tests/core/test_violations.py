"""The two violations, and what they keep of the offending octets."""

from smtpproxy.core.violations import OCTETS_KEPT, BackendViolation, ClientViolation, Violation


def test_violation_keeps_a_bounded_part_of_the_octets() -> None:
    violation = BackendViolation("malformed_reply", bytearray(b"x" * 10**6))
    assert violation.octets == b"x" * OCTETS_KEPT
    assert isinstance(violation.octets, bytes)


def test_violation_says_what_it_is_and_no_octets() -> None:
    violation = ClientViolation("bare_lf", b"550 no\r\n", b"c2VjcmV0", closes=True)
    assert str(violation) == violation.kind == "bare_lf"
    assert (violation.reply, violation.closes) == (b"550 no\r\n", True)
    assert isinstance(violation, Violation)


def test_client_goes_on_unless_it_is_said_otherwise() -> None:
    assert not ClientViolation("line_too_long", b"500 no\r\n").closes
