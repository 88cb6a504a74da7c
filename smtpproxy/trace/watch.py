"""The request of `smtpproxy trace watch` to the service, and the lines of the answer.

The answer begins with the first line of a trace file.  After it come records, the line `watching`
once all workers record, and `records_lost` where some could not be sent.  A watch ends when its
connection is closed.
"""

from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Literal, cast, get_args
from urllib.parse import parse_qs, urlencode

import msgspec
from msgspec import Struct

from smtpproxy.config.address import canonical_network
from smtpproxy.trace.content_capture import CaptureMode
from smtpproxy.trace.records import Count, FileHeader, Record, decode

PATH = "/trace/watch"
"""The path of the request at the control socket."""
NETWORKS = 32
"""The most networks of a watch."""
CONTENT_OCTETS = 256 * 1024
"""The most of the content of a message, whatever trace.max_content is: its record is made on the
event loop, in up to 10 ms, and passes through the supervisor."""
Content = Literal["none", "headers", "full"]
Network = IPv4Network | IPv6Network


class WatchRequest(Struct, frozen=True):
    """Which sessions are recorded, and how much of them."""

    networks: tuple[str, ...]
    """The networks of the clients."""
    content: Content = "none"
    """How much message content, as `trace.content`."""
    only_problems: bool = False
    """Only sessions in which something failed, as `trace.when = "errors"`."""

    @property
    def target(self) -> str:
        """The request target at the control socket: the path and the query."""
        query = {
            "client": self.networks,
            "content": self.content,
            "problems": int(self.only_problems),
        }
        return f"{PATH}?{urlencode(query, doseq=True)}"

    def clients(self) -> list[Network]:
        """Return the networks of the clients."""
        return [ip_network(each) for each in self.networks]


def parse(query: str) -> WatchRequest:
    """Parse the query of a request target.

    Raises:
        ValueError: It is not valid; the message is for the client.
    """
    values = parse_qs(query, max_num_fields=NETWORKS + 2)
    given = values.pop("client", [])
    content = values.pop("content", ["none"])[-1]
    only_problems = values.pop("problems", ["0"])[-1] == "1"
    if values:
        raise ValueError(f"{min(values)} is no parameter of a watch")
    if not 0 < len(given) <= NETWORKS:
        raise ValueError(f"a watch needs 1 to {NETWORKS} networks of clients")
    if content not in get_args(Content):
        raise ValueError(f"content must be none, headers or full, not {content!r}")
    networks = tuple(map(_network, given))
    return WatchRequest(networks, cast("Content", content), only_problems)


def _network(text: str) -> str:
    try:
        return str(canonical_network(text))
    except ValueError as error:
        raise ValueError(f"{text!r} {error}") from None


def why_not(request: WatchRequest, allowed: Content, networks: Sequence[Network]) -> str:
    """Return why content may not be recorded; empty if it may.

    Args:
        request: The request.
        allowed: The setting `trace.content`.
        networks: The setting `trace.networks`.
    """
    order = [each.value for each in CaptureMode]
    if order.index(request.content) > order.index(allowed):
        return f'the settings do not allow it: trace.content is "{allowed}"'
    if request.content == "none" or not networks:
        return ""
    for each in request.clients():
        if not any(_is_within(each, network) for network in networks):
            return f"the settings do not allow content of {each}: trace.networks is without it"
    return ""


def _is_within(inner: Network, outer: Network) -> bool:
    return (
        inner.version == outer.version
        and inner.prefixlen >= outer.prefixlen
        and inner.network_address in outer
    )


class Watching(Struct, tag_field="what", tag="watching"):
    """From here on, each session that begins is recorded."""


class RecordsLost(Struct, tag_field="what", tag="records_lost"):
    """Records are missing: there were more than could be sent."""

    records: Count
    """How many, since the last such line."""


_of_stream: Callable[[bytes], Watching | RecordsLost] = msgspec.json.Decoder(
    Watching | RecordsLost
).decode
encode_line = msgspec.json.Encoder().encode


def read_line(line: bytes) -> Record | FileHeader | Watching | RecordsLost:
    """Decode a line of the answer.

    Raises:
        msgspec.DecodeError: It is not such a line.
    """
    if line.startswith((b'{"what":"watching"', b'{"what":"records_lost"')):
        return _of_stream(line)
    return decode(line)
