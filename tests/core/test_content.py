"""Message content: its end, and what the backend gets."""

import pytest

from smtpproxy.core.content import BULK, LINE_KEPT, BareNewlines, Content, has_crlf_only
from smtpproxy.core.pipeline import Pipeline
from smtpproxy.core.policy import SessionPolicy
from tests.support.pipeline_stage import Observed

NORMALIZE, REJECT, PASS = BareNewlines


def _whole(bare_newlines: BareNewlines, octets: bytes) -> bytes:
    """Return the output of the content filter for octets that contain their end of data."""
    content = Content(bare_newlines)
    out, taken = content.receive(octets)
    assert taken == len(octets)
    assert content.ended
    return out


@pytest.mark.parametrize("bare_newlines", BareNewlines)
@pytest.mark.parametrize(
    "text", [b"", b"x\r\n", b"..\r\n", b".x\r\n", b"\r\n", b"x.\r\n", b"\xff\r\n"]
)
def test_clean_content_passes_unchanged(bare_newlines: BareNewlines, text: bytes) -> None:
    assert _whole(bare_newlines, text + b".\r\n") == text + b".\r\n"


@pytest.mark.parametrize("bare_newlines", BareNewlines)
def test_what_follows_the_end_of_data_is_not_taken(bare_newlines: BareNewlines) -> None:
    content = Content(bare_newlines)
    assert content.receive(b"x\r\n.\r\nQUIT\r\n") == (b"x\r\n.\r\n", 6)
    assert content.octets == 3


@pytest.mark.parametrize("bare_newlines", BareNewlines)
@pytest.mark.parametrize("text", [b"x\r\n.\r\n", b".\r\n"])
def test_end_of_data_is_found_however_it_is_cut(bare_newlines: BareNewlines, text: bytes) -> None:
    for cut in range(len(text)):
        content = Content(bare_newlines)
        first, taken = content.receive(text[:cut])
        assert (taken, content.ended) == (cut, False)
        second, taken = content.receive(text[cut:] + b"QUIT\r\n")
        assert (taken, content.ended) == (len(text) - cut, True)
        assert first + second == text
        assert content.octets == len(text) - 3


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (b"a\nb", b"a\r\nb"),
        (b"a\rb", b"a\r\nb"),
        (b"a\r\r\nb", b"a\r\nb"),
        (b"a\r\r\r\nb", b"a\r\n\r\nb"),
        (b"a\n\rb", b"a\r\n\r\nb"),
        (b"a\0b", b"ab"),
        (b"a\r\0\nb", b"a\r\nb"),
        (b"\n.\n", b"\r\n..\r\n"),
        (b".\n", b"..\r\n"),
        (b".\0\n", b"..\r\n"),
        (b"\0.\r\n", b"..\r\n"),
        (b"a\r.\rb", b"a\r\n..\r\nb"),
        (b"a\r\n.\r\r\nb", b"a\r\n..\r\nb"),
        (b"a\n.b", b"a\r\n.b"),
        (b"a\n..\n", b"a\r\n..\r\n"),
        (b"\n.\n.\n.\n", b"\r\n..\r\n..\r\n..\r\n"),
        # A dot that starts a line only because a CR or NUL was rewritten is text to the client.
        (b"cost\r.50", b"cost\r\n..50"),
        (b"cost\r\0.50", b"cost\r\n..50"),
        (b"cost\r..50", b"cost\r\n...50"),
        (b"cost\r\r.50", b"cost\r\n\r\n..50"),
        (b"cost\r\n\0.50", b"cost\r\n..50"),
        (b"cost\n\0\0.50", b"cost\r\n..50"),
        (b"\0.50", b"..50"),
        # After an LF it is not: MTAs that accept a bare LF as line end remove it, too.
        (b"cost\n.50", b"cost\r\n.50"),
        (b"cost\r\r\n.50", b"cost\r\n.50"),
        (b"cost\r\0\n.50", b"cost\r\n.50"),
        (b"cost\r\n.\0" + b"50", b"cost\r\n.50"),
    ],
)
def test_normalize_in_one_piece_and_octet_by_octet(text: bytes, normal: bytes) -> None:
    assert _whole(NORMALIZE, text + b"\r\n.\r\n") == normal + b"\r\n.\r\n"
    content = Content(NORMALIZE)
    octets = text + b"\r\n.\r\n"
    out = b"".join(content.receive(octets[at : at + 1])[0] for at in range(len(octets)))
    assert out == normal + b"\r\n.\r\n"


def test_normalize_keeps_back_no_more_than_it_must() -> None:
    content = Content(NORMALIZE)
    assert content.receive(b"a line\r\n.")[0] == b"a line\r\n"
    assert content.receive(b"\r")[0] == b""
    assert content.receive(b"x")[0] == b"..\r\nx"
    assert content.receive(b"\r\r")[0] == b""
    assert content.receive(b"\0")[0] == b""
    assert content.receive(b"y\n.")[0] == b"\r\n\r\ny\r\n"
    assert content.receive(b"\0")[0] == b""
    assert content.receive(b"z")[0] == b".z"


def test_reject_gives_out_whole_clean_lines_before_the_offence() -> None:
    content = Content(REJECT)
    assert content.receive(b"one\r\ntw")[0] == b"one\r\n"
    assert content.receive(b"o\r\nthree\nfour\r\n")[0] == b"two\r\n"
    assert content.violation is not None
    assert content.violation.kind == "bare_lf"
    assert content.violation.octets == b"hree\nfour"  # little of it, since it is content
    assert content.receive(b"five\r\n.\r\nQUIT") == (b"", 9)
    assert content.ended


@pytest.mark.parametrize(
    ("text", "kind"),
    [(b"\n", "bare_lf"), (b"\rx\r\n", "bare_cr"), (b"\r\r\n", "bare_cr"), (b"\0\r\n", "bare_nul")],
)
def test_reject_names_the_offence(text: bytes, kind: str) -> None:
    content = Content(REJECT)
    assert content.receive(text)[0] == b""
    assert content.violation is not None
    assert content.violation.kind == kind
    assert content.violation.closes


def test_reject_keeps_back_the_end_of_a_long_line_only() -> None:
    content = Content(REJECT)
    assert content.receive(b"x" * LINE_KEPT)[0] == b""
    assert content.receive(b"x\r")[0] == b"x" * 2
    assert content.receive(b"\n")[0] == b"x" * (LINE_KEPT - 1) + b"\r\n"
    assert content.receive(b"y" * LINE_KEPT + b"\0")[0] == b""
    assert content.violation is not None


@pytest.mark.parametrize(
    "bulk",
    [
        b"x" * 76 + b"\r\n",
        b"\r\n",
        b"x\r\n",
        b"x" * 998 + b"\r\n",
        b"x" * 5000 + b"\r\n",
    ],
    ids=len,
)
def test_bulk_with_one_thing_amiss_is_noticed(bulk: bytes) -> None:
    octets = bulk * (2 * BULK // len(bulk) + 3)
    assert has_crlf_only(octets)
    assert has_crlf_only(b"first\r\n" + octets + b"last")
    middle = len(octets) // 2 - 1
    for amiss in (b"\r", b"\n"):
        for at in (0, 1, middle, len(octets) - 1):
            changed = octets[:at] + amiss + octets[at:]
            assert has_crlf_only(changed) == (changed.replace(b"\r\n", b"").strip(b"x") == b"")
            changed = octets[:at] + amiss + octets[at + 1 :]
            assert has_crlf_only(changed) == (changed.replace(b"\r\n", b"").strip(b"x") == b"")


@pytest.mark.parametrize("amiss", [b"", b"\r", b"\n", b"\r\r\n", b"\n\r"], ids=repr)
@pytest.mark.parametrize("place", range(5))
def test_bulk_between_a_header_and_a_boundary_is_looked_at_as_carefully(
    amiss: bytes, place: int
) -> None:
    header = b"From: <a@b.example>\r\nSubject: bulk\r\n\r\n"
    bulk = (b"x" * 76 + b"\r\n") * 100
    parts = [header, bulk, b"xx\r\n--boundary\r\n\r\n", bulk * 2, b"x=\r\n--boundary--"]
    assert has_crlf_only(b"".join(parts))
    parts[place] += amiss
    assert has_crlf_only(b"".join(parts)) == (not amiss)


def test_bulk_with_no_line_end_in_its_second_half() -> None:
    octets = b"x" * 40 + b"\r\n" + b"x" * 2 * BULK
    assert has_crlf_only(octets)
    assert not has_crlf_only(b"\r" + octets)


def test_bulk_larger_than_the_scratch_buffer() -> None:
    line = b"x" * 76 + b"\r\n"
    octets = line * 4000
    assert has_crlf_only(octets)
    assert not has_crlf_only(octets + b"\n")


def test_bulk_passes_without_a_change() -> None:
    octets = (b"x" * 76 + b"\r\n") * 100
    for bare_newlines in BareNewlines:
        assert Content(bare_newlines).receive(octets) == (octets, len(octets))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (b"a\nb\rc\0", "bare_lf"),
        (b"a\rb\n", "bare_cr"),
        (b"a\r\0\n", "bare_cr"),
        (b"a\0\r", "bare_nul"),
        (b"a\r\n", ""),
    ],
)
@pytest.mark.parametrize("size", [1, 100])
def test_normalize_reports_what_reject_would_refuse(text: bytes, kind: str, size: int) -> None:
    octets = text + b"x\r\n\n.\r\n\0\r\n.\r\n" if kind else text + b".\r\n"
    kinds = []
    for policy in (NORMALIZE, REJECT):
        content = Content(policy)
        for at in range(0, len(octets), size):
            content.receive(octets[at : at + size])
        noted = content.rewritten or content.violation
        kinds.append(noted.kind if noted else "")
    assert kinds == [kind, kind]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_octets_around_the_first_offence_are_shown(size: int) -> None:
    octets = b"one\r\ntwo three\nfour five\nsix\r\n.\r\n"
    for policy in (NORMALIZE, REJECT):
        content = Content(policy)
        for at in range(0, len(octets), size):
            content.receive(octets[at : at + size])
        noted = content.rewritten or content.violation
        assert noted is not None
        assert noted.octets == b"hree\nfour"  # little, since it is content


@pytest.mark.parametrize("size", [1, 2, 100])
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (b"12345\n7890", "bare_lf"),
        (b"12345678\n", "message_too_big"),
        (b"123456\n\0", "bare_lf"),
        (b"1234567\r0", "message_too_big"),  # it shows only with the octet that is too much
        (b"123456\r\n", ""),
    ],
)
def test_the_first_offence_is_the_verdict(text: bytes, kind: str, size: int) -> None:
    octets = text + b"\r\n.\r\n" if kind else text + b".\r\n"
    content = Content(REJECT, 8)
    for at in range(0, len(octets), size):
        content.receive(octets[at : at + size])
    assert content.ended
    assert content.octets == len(octets) - 3
    assert (content.violation.kind if content.violation else "") == kind


@pytest.mark.parametrize("policy", BareNewlines)
def test_of_what_is_too_big_as_much_goes_on_as_is_allowed(policy: BareNewlines) -> None:
    content = Content(policy, 9)
    assert content.receive(b"one\r\nt\r\n.\r")[0].startswith(b"one\r\n")
    assert content.octets == 8  # the dot may be the end
    assert content.violation is None
    content.receive(b"x\r\n")
    assert content.violation is not None
    assert content.violation.closes
    assert content.receive(b".\r\n") == (b"", 3)
    assert (content.ended, content.octets) == (True, 13)


def test_a_rewritten_message_is_relayed_and_known() -> None:
    seen = Observed()
    pipeline = Pipeline(SessionPolicy(), lambda _: None, seen, 1.0)
    pipeline.connect_backend(lambda _: None)
    pipeline.backend_received(b"220 mx\r\n", 1.0)
    pipeline.client_received(b"DATA\r\n", 1.0)
    pipeline.backend_received(b"354 go\r\n", 1.0)
    pipeline.client_received(b"a\nb\r\n.\r\n", 1.0)
    pipeline.backend_received(b"250 ok\r\n", 1.0)
    problem = seen[-1].problem
    assert problem is not None
    assert (problem.kind, problem.octets) == ("bare_lf", b"a\nb\r\n")
    assert seen[-1].rewritten
    assert not pipeline.ended
