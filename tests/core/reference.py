"""A reference for content, octet by octet, whose result the streaming code must have in every cut.

It looks at the octets of a whole message at once, and forward and backward as it likes.
"""

CR, LF, NUL, DOT = b"\r", b"\n", b"\0", b"."
END = b"\r\n.\r\n"


def body_of(stream: bytes) -> bytes:
    """Return the content at the start of a stream, without its end of data."""
    return (b"\r\n" + stream).partition(END)[0][2:] + CR + LF if stream[:3] != b".\r\n" else b""


def normalized(body: bytes) -> bytes:
    """Return what the backend gets for a complete content."""
    out, came_before = b"\r\n", LF
    for at in range(len(body)):
        octet, rest = body[at : at + 1], body[at + 1 :].replace(NUL, b"")
        if octet == LF or (octet == CR and not rest.startswith((b"\n", b"\r\n"))):
            lone = out.endswith(b"\r\n.")  # and not the end of data, which is not in the body
            out += b".\r\n" if lone else b"\r\n"
        elif octet == DOT and out.endswith(b"\r\n") and came_before in (CR, NUL):
            out += b".."
        elif octet not in (CR, NUL):
            out += octet
        came_before = octet
    return out[2:]


def first_bare(body: bytes) -> int:
    """Return the index of the first CR, LF or NUL that is not part of CRLF, or -1."""
    for at in range(len(body)):
        before, octet, after = body[:at], body[at : at + 1], body[at + 1 :]
        if (
            octet == NUL
            or (octet == LF and not before.endswith(CR))
            or (octet == CR and after and not after.startswith(LF))
        ):
            return at
    return -1
