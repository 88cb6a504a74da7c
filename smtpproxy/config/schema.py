"""Settings: every one of them, with its type, bounds, default and meaning.

A key that is not here is an error, never ignored. `smtpproxy.config.loader` reads the settings from
a file and from flags.

`python deploy/generate` makes deploy/reference/settings.md and smtpproxy.toml(5) from this file:
the docstring of a class introduces its table, the docstring below an attribute explains the
setting, and paths such as `deploy/content.md` become links.

To add a setting, add an attribute with its docstring.
"""

import re
import socket
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta, Struct, field

from smtpproxy.config.address import (
    NAT64_BITS,
    Address,
    canonical,
    canonical_network,
    parse_listener,
    parse_server,
)
from smtpproxy.config.decoding import ParsedBy, WrittenLike

Sync = Literal["safe", "strict", "off"]
BareNewlines = Literal["normalize", "reject", "pass"]
LogLevel = Literal["debug", "info", "warning", "error"]
ListenerTls = Literal["off", "starttls", "implicit", "passthrough"]
BackendTls = Literal["off", "opportunistic", "starttls", "implicit"]
TlsVersion = Literal["1.0", "1.1", "1.2", "1.3"]
Ciphers = Literal["modern", "intermediate", "legacy"]
Identity = Literal["none", "proxy-v1", "proxy-v2", "xclient", "xforward", "transparent"]
LogFormat = Literal["auto", "console", "json", "syslog"]

_MOST = 1_000_000_000


def _host_name(text: str) -> str:
    """Check the proxy's name: a domain or an address literal."""
    if len(text) <= 255 and re.fullmatch(r"[A-Za-z0-9_.-]+|\[[A-Za-z0-9:.]+\]", text, re.ASCII):
        return text
    raise ValueError('is not a host name; write, for example, "mx.example.org"')


def _table_name(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text, re.ASCII):
        return text
    raise ValueError(
        'is not a valid name: letters, digits, hyphens, dots and underscores, such as "old-mta"'
    )


def _instance_name(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text, re.ASCII):
        return text
    raise ValueError(
        "is not the name of an instance: letters, digits, hyphens, dots and underscores, 64 at"
        ' most, such as "mx1"'
    )


def host_instance() -> str:
    """Return this machine's name, as far as it can be that of an instance."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).lstrip("._-")
    return name[:64] or "localhost"


def _capability(text: str) -> str:
    """Check an esmtp-keyword (RFC 5321 section 4.1.1.1)."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", text, re.ASCII):
        return text.upper()
    raise ValueError(
        'is not a capability: one word of letters, digits and hyphens, such as "CHUNKING"'
    )


class NetworkSetting(Struct, frozen=True):
    """A network of IP addresses in its canonical text."""

    text: str

    def parsed(self) -> IPv4Network | IPv6Network:
        """Return the network, for comparisons with addresses."""
        return ip_network(self.text)


def _network(text: str) -> NetworkSetting:
    """Parse a network or an address."""
    return NetworkSetting(str(canonical_network(text)))


def _source(text: str) -> str:
    """Parse an IP address to connect from."""
    try:
        ip = ip_address(canonical(text))
    except ValueError:
        ip = None
    if ip is None or ip.is_unspecified or ip.is_multicast:
        raise ValueError('is not an IP address to connect from; write, for example, "192.0.2.10"')
    return str(ip)


def _nat64_network(text: str) -> NetworkSetting:
    """Parse a NAT64 prefix."""
    try:
        network = canonical_network(text)
    except ValueError:
        network = None
    if network is None or network.version != 6 or network.prefixlen not in NAT64_BITS:
        raise ValueError(
            "is not the prefix of a NAT64: an IPv6 network of 32, 40, 48, 56, 64 or 96 bits,"
            ' such as "2001:db8:64::/96"'
        )
    return NetworkSetting(str(network))


def _whole_path(example: str) -> ParsedBy:
    """Return the parser of an absolute path; the file itself is not checked."""

    def read(text: str) -> str:
        if text.startswith("/") and "\0" not in text:
            return text
        raise ValueError(f'needs the whole path, such as "{example}"')

    return ParsedBy(read, f'a path, such as "{example}"')


def _mode(text: str) -> str:
    """Check the mode of a file."""
    if re.fullmatch("0?[0-7]{3}", text):
        return text
    raise ValueError('is not the mode of a file; write, for example, "0660"')


def _served_name(text: str) -> str:
    """Check a host name of `sni`, which may begin with `*.`."""
    if len(text) <= 255 and re.fullmatch(
        r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", text, re.ASCII
    ):
        return text
    raise ValueError('is not a host name; write, for example, "mx.example.org" or "*.example.org"')


def _whole(least: int, most: int = _MOST, zero: str = "") -> Meta:
    """Return the bounds of a number; `zero` is what 0 means, if that is something of its own."""
    return _number("a whole number", least, most, zero)


def _bytes(least: int, zero: str = "") -> Meta:
    return _number("a number of bytes", least, _MOST, zero)


def _seconds_or(zero: str, most: int = 86400) -> Meta:
    return _number("a number of seconds", 0, most, zero)


def _number(unit: str, least: int, most: int, zero: str) -> Meta:
    meant = f" ({zero})" if zero else ""
    return Meta(ge=least, le=most, description=f"{unit} from {least}{meant} to {most}")


_UNITS = {"": 0, "KiB": 10, "MiB": 20, "GiB": 30}


def _size(text: str) -> int:
    """Read a number of bytes: `65536`, `64KiB`, `64MiB` or `1GiB`."""
    found = re.fullmatch(r"([0-9]{1,12}) ?(|[KMG]iB)", text, re.ASCII)
    size = int(found[1]) << _UNITS[found[2]] if found else 0
    if not 4096 <= size <= 1 << 40:
        raise ValueError('is not a size from "4KiB" to "1024GiB", such as "64MiB"')
    return size


def _content_size(text: str) -> int:
    """Read a number of bytes that a trace record has room for."""
    wrong = ValueError('is not a size from "4KiB" to "16MiB", such as "1MiB"')
    try:
        size = _size(text)
    except ValueError:
        raise wrong from None
    if size > 1 << 24:
        raise wrong
    return size


def _collector(text: str) -> str:
    """Check the URL of an OpenTelemetry collector.

    Credentials are refused in it, since the log would show them.
    """
    try:
        url = urlsplit(text)
        good = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:
        good = False
    if good and text.isascii() and text.isprintable() and not set(text) & set(" @?#"):
        return text
    raise ValueError('is not the URL of a collector, such as "http://127.0.0.1:4318"')


def _store(text: str) -> str:
    """Check the URL of a Redis or Valkey server."""
    try:
        url = urlsplit(text)
        database = re.fullmatch(r"/?|/[0-9]{1,4}", url.path, re.ASCII)
        good = url.scheme in ("redis", "rediss") and url.hostname and url.port != 0 and database
    except ValueError:
        good = False
    if good and text.isascii() and text.isprintable() and not set(text) & set(" ?#"):
        return text
    raise ValueError(
        'is not the URL of a Redis or Valkey server, such as "redis://10.0.0.9:6379" or, with TLS'
        ' and an ACL user, "rediss://smtpproxy@redis.example.org"'
    )


def read_token(text: str) -> str:
    """Read the token of the admin address."""
    if len(text) >= 16 and text.isascii() and text.isprintable() and " " not in text:
        return text
    raise ValueError("is too short or has odd characters; 16 letters and digits at least")


TableName = Annotated[str, ParsedBy(_table_name, 'a name, such as "old-mta"')]
InstanceName = Annotated[str, ParsedBy(_instance_name, 'a name, such as "mx1"')]
ListenAddress = Annotated[Address, ParsedBy(parse_listener, 'an address, such as "127.0.0.1:25"')]
ServerAddress = Annotated[Address, ParsedBy(parse_server, 'an address, such as "10.0.0.5:25"')]
AdminAddress = Annotated[Address, ParsedBy(parse_listener, 'an address, such as "127.0.0.1:8025"')]
HostName = Annotated[str, ParsedBy(_host_name, 'a name, such as "mx.example.org"')]
SourceAddress = Annotated[str, ParsedBy(_source, 'an IP address in quotes, such as "192.0.2.10"')]
ServedName = Annotated[str, ParsedBy(_served_name, 'a host name, such as "mx.example.org"')]
Networks = Annotated[
    list[
        Annotated[NetworkSetting, ParsedBy(_network, 'a network in quotes, such as "192.0.2.0/24"')]
    ],
    WrittenLike('a list of networks, such as ["192.0.2.0/24"]'),
]
Nat64Networks = Annotated[
    list[
        Annotated[
            NetworkSetting,
            ParsedBy(_nat64_network, 'a network in quotes, such as "2001:db8:64::/96"'),
        ]
    ],
    WrittenLike('a list of networks, such as ["2001:db8:64::/96"]'),
]
CapabilityWords = Annotated[
    list[Annotated[str, ParsedBy(_capability, 'a capability in quotes, such as "CHUNKING"')]],
    WrittenLike('a list of capabilities, such as ["CHUNKING"]'),
]
WorkerCount = Annotated[int, _whole(0, 64)]
File = Annotated[str, _whole_path("/etc/smtpproxy/cert.pem")]
Directory = Annotated[str, _whole_path("/var/log/smtpproxy")]
FileMode = Annotated[str, ParsedBy(_mode, 'a mode in quotes, such as "0660"')]
Size = Annotated[int, ParsedBy(_size, 'a size in quotes from "4KiB" to "1024GiB", such as "64MiB"')]
ContentSize = Annotated[
    int, ParsedBy(_content_size, 'a size in quotes from "4KiB" to "16MiB", such as "1MiB"')
]
Seconds = Annotated[
    float, Meta(gt=0, le=86400, description="a number of seconds above 0, at most 86400 (a day)")
]


class CertificateSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A certificate for clients that ask for the host name HOST in the TLS handshake (SNI).

    `*.example.org` matches any host of that domain and is tried after whole names.
    """

    certificate: File
    """PEM file with the certificate and its chain."""
    key: File = ""
    """PEM file with the key, if it is not in the file of the certificate."""
    ecdsa_certificate: File = ""
    """PEM file with another certificate for the same names, whose key is ECDSA, as for listeners.
    """
    ecdsa_key: File = ""
    """PEM file with its key, if it is not in the file of `ecdsa_certificate`."""


BACKEND_FILES = ("ca_file", "client_certificate", "client_key")
"""The settings of a backend that name files."""
CERTIFICATE_FILES = ("certificate", "key", "ecdsa_certificate", "ecdsa_key")
"""The settings of a listener, and of a host name in its `sni`, that name files."""


class CapabilitySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which EHLO capabilities of the MTA clients see; deploy/reference/capabilities.md has all."""

    hide: CapabilityWords = []
    """Capabilities of the MTA that clients do not see; their commands are refused."""
    allow: CapabilityWords = []
    """Unknown capabilities of the MTA that clients may see."""


class ListenerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An address for clients. NAME is the label `listener` in log, metrics and traces."""

    address: ListenAddress
    """`"HOST:PORT"`, `"[IPV6]:PORT"`, `"unix:/PATH"`, or `"fd:NAME"` for a socket that systemd
    passes. `"[::]:25"` takes IPv6 and IPv4; IPv6 alone if another listener, the admin address or a
    socket of systemd has an IPv4 address at the same port. Port 0: any free one.
    """
    mode: FileMode = ""
    """The mode of a Unix socket, whatever the umask. Left out, only the service's user may connect
    (`0600`), as with the admin socket.
    """
    # Once loaded, always the name of a backend.
    backend: str = ""
    """The backend's name. May be left out when there is one."""
    sync: Sync = "safe"
    """Which clients are rejected for sending too early. `safe`: data sent after DATA before the
    354. `strict`: also data before the greeting, after EHLO, HELO, NOOP, VRFY, EXPN or ETRN before
    its reply, and groups after HELO. `off`: none; commands wait. In every mode, data sent in
    plaintext after STARTTLS is never used.
    """
    early_pipelining: bool = False
    """Offer PIPECONNECT, so that a client which knows the listener from an earlier session sends
    its first commands before the greeting (Exim 4.96 or newer): a message takes two waits. Offered
    while all servers of the backend that are up offer the same, and none has changed for 10
    minutes. Also accepts TCP Fast Open, if `net.ipv4.tcp_fastopen` allows it.
    """
    bare_newlines: BareNewlines = "normalize"
    """Bare CR, bare LF and NUL in content. `normalize`: replaced by CRLF, NUL removed. `reject`:
    550. `pass`: unchanged. See deploy/content.md.
    """
    capabilities: CapabilitySettings = CapabilitySettings()
    tls: ListenerTls = "off"
    """`starttls`, `implicit`: the proxy does TLS with clients. `passthrough`: the MTA's own
    STARTTLS; from its 220 on the proxy only carries bytes. `off`: the MTA's STARTTLS is hidden.
    """
    minimum_tls: TlsVersion = "1.2"
    """The oldest version of TLS to use with clients. 1.0 and 1.1 need `ciphers = "legacy"`."""
    ciphers: Ciphers = "intermediate"
    """Which cipher suites clients may use before TLS 1.3. `modern`: ECDHE with AES-GCM or
    ChaCha20-Poly1305. `intermediate`: also AES-CBC with SHA-2. `legacy`: also RSA key exchange and
    SHA-1, short keys and TLS 1.0, for old clients. See deploy/recipes.md#clients-with-old-tls.
    """
    certificate: File = ""
    """PEM file with the certificate and its chain. Read at start, at each reload, and within a
    minute after a change.
    """
    key: File = ""
    """PEM file with the key, if it is not in the file of the certificate."""
    ecdsa_certificate: File = ""
    """PEM file with another certificate for the same names, whose key is ECDSA, while that of
    `certificate` is RSA. Clients that support ECDSA get it, older ones the other.
    """
    ecdsa_key: File = ""
    """PEM file with its key, if it is not in the file of `ecdsa_certificate`."""
    sni: Annotated[
        dict[ServedName, CertificateSettings],
        WrittenLike('a table for each host name, written [listeners.NAME.sni."mx.example.org"]'),
    ] = {}
    require_tls: bool = False
    """Answer 530 to mail commands until STARTTLS."""
    auth: Literal["any", "tls-only", "hidden"] = "any"
    """Whether clients may use the MTA's AUTH: `any`, `tls-only` (538 in plaintext) or `hidden`."""
    proxy_protocol: Networks = []
    """Networks that must send a PROXY header (v1 or v2); limits, log and `identity` then use the
    client it names, and the log has its TLVs about SNI, TLS and unique id. Without a header: 421. A
    header from any other network: 451 and close; it never reaches the MTA. Where TLS comes first,
    both get a TLS alert instead.
    """
    probes: Networks = []
    """Networks of load balancers and monitors that only ask whether SMTP is served, and send no
    mail. The proxy greets them in its own name and answers EHLO, HELO, NOOP, RSET and QUIT;
    everything else gets 421. The MTA sees no connection, and they are not counted by address. One
    that is in `proxy_protocol`, too, is a probe if it sends no header within a second, or one that
    names no client.
    """
    xclient: Networks = []
    """Networks that may name another client by XCLIENT, whatever the MTA offers: limits, log and
    `identity` then use that client, on a new connection to the MTA (the first session closes with
    `reason=introduced`). The named client may not do so in turn, unless it is in these networks
    too. LOGIN, an authenticated user, is accepted with `identity = "xclient"`, and passed to an MTA
    that offers it. Their XFORWARD is passed on.
    """
    transparent: bool = False
    """Accept connections to other machines (TPROXY, REDIRECT). See `smtpproxy example nftables`."""


class BackendSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An MTA. NAME is the label `backend` in log, metrics and traces."""

    servers: Annotated[
        list[ServerAddress], WrittenLike('a list of addresses, such as ["10.0.0.5:25"]')
    ]
    """Addresses, tried in order until one greets. A name is resolved at each connect; if it has
    several addresses, the next one is tried as soon as one fails or is silent for 0.25 s
    (RFC 8305), IPv6 and IPv4 in turn. `["original"]`: the address that the client
    connected to (`transparent`).
    """
    pipelining: Literal["auto", "never"] = "auto"
    """`auto`: use the MTA's own PIPELINING when it is offered. `never`: for an MTA that offers it
    and loses commands.
    """
    chunking: Literal["pass", "add"] = "pass"
    """`pass`: offer CHUNKING if the MTA does. `add`: also if it does not, unless it knows HELO
    only; the MTA then gets DATA instead of BDAT.
    See deploy/recipes.md#chunking-for-an-mta-without-it.
    """
    helo_fallback: bool = True
    """Send HELO to an MTA that answers EHLO with 500 or 502."""
    guard_data: bool = True
    """Answer DATA without the MTA if it refused every recipient: 554, or 451 if all of them were
    refused with 4xx. So is BDAT, if the MTA would get DATA instead.
    """
    balance: Literal["first", "least"] = "first"
    """Which server a session tries first. `first`: the first in the list. `least`: the one with the
    fewest sessions of that worker; servers with equally many in turn.
    """
    retry_after: Seconds = 10.0
    """How long a server is not used after it could not be reached, did not greet or greeted with
    4xx. If all servers are down, all are tried. An MTA that knows the client at that point
    (`identity` is `proxy-v1`, `proxy-v2` or `transparent`) may refuse only this client, so the
    proxy connects once in its own name, and that result decides.
    """
    health_check_interval: Annotated[float, _seconds_or("never")] = 0.0
    """Time between health checks of each server: greeting, EHLO, QUIT."""
    max_connections: Annotated[int, _whole(0, zero="no limit")] = 0
    """Connections of the whole service; with `[cluster]`, of all replicas. Beyond them clients
    wait, and are served in turns by address. While others wait, an address that holds half of the
    connections (at least one) gets no more. For an address that has waited a quarter of `max_wait`,
    the one with the most connections gives one back: the session ends with 421 4.3.2 after its
    transaction. Sessions that were open before a reload set the limit do not count.
    """
    max_wait: Seconds = 30.0
    """How long a client waits for one of `max_connections`; then it gets 421 4.3.2."""
    identity: Identity = "none"
    """How the MTA learns the client's address. `transparent`: the connection comes from it (any
    MTA; CAP_NET_ADMIN). `proxy-v1`, `proxy-v2`: a PROXY header; `proxy-v2` has TLVs with the
    client's TLS, if that begins first (`implicit`), and an id. `xclient`: the session fails if the
    MTA does not offer it with ADDR, or does not accept it; a 4xx or 554 to it reaches the client
    like a greeting. `xforward`: before each message, for the MTA's log
    only. See deploy/cut-over.md#2-who-does-the-mta-trust.
    """
    tls: BackendTls = "off"
    """`opportunistic`: STARTTLS if offered, not verified; if the handshake fails, the session goes
    on in plaintext, on a new connection, unless the client has sent a command before EHLO or HELO:
    then it gets 421. `starttls`, `implicit`: required, else the session fails
    with 421. For a client that says HELO, the proxy says EHLO with the same name.
    """
    verify: bool = True
    """Verify the MTA's certificate (`starttls`, `implicit`)."""
    ca_file: File = ""
    """PEM file with the CAs to trust instead of the system's."""
    server_name: Annotated[str, ParsedBy(_host_name, 'a host name, such as "mx.example.org"')] = ""
    """The name that the MTA's certificate must have, if it is not the server's host."""
    minimum_tls: TlsVersion = "1.2"
    """The oldest version of TLS to use with the MTA. Below 1.2 its TLS may be old in other ways,
    too: cipher suites, short keys, and no secure renegotiation (RFC 5746).
    """
    client_certificate: File = ""
    """PEM file with the certificate, and its chain, that the proxy shows to the MTA. It is shown
    for every client: an MTA that relays for it relays for them all.
    """
    client_key: File = ""
    """PEM file with its key, if it is not in the file of `client_certificate`. Other accounts may
    not read the file with the key: mode 0640 at most.
    """
    source: SourceAddress = ""
    """The address of this machine to connect from. Of a server's name, only addresses of the same
    family are used. Left out, the system chooses it.
    """


class LimitSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of a session and of the whole service.

    A full queue is never an error: reading from the client pauses until there is room
    (back-pressure).
    """

    queue_commands: Annotated[int, _whole(1)] = 1000
    """The most commands of a client that wait in the proxy."""
    queue_bytes: Annotated[int, _bytes(4096)] = 262144
    """The most bytes of a client that wait in the proxy; at least `command_line` and `auth_line`.
    """
    # RFC 5321 section 4.5.3.1.4 asks for 512 at least.
    command_line: Annotated[int, _bytes(512)] = 2048
    """The longest command line."""
    # RFC 4954 section 4 asks for 12288.
    auth_line: Annotated[int, _bytes(512)] = 12288
    """The longest line of an AUTH. Shorter ones break large Kerberos and OAuth tokens."""
    reply_bytes: Annotated[int, _bytes(4096)] = 262144
    """The longest reply of the MTA, including all its lines. A longer one ends the session with
    421.
    """
    consecutive_errors: Annotated[int, _whole(0, zero="no limit")] = 20
    """5xx replies in a row after which the client gets 421. Replies to RCPT do not count."""
    sessions: Annotated[int, _whole(0, zero="no limit")] = 10000
    """Sessions of the whole service; further clients get 421 4.3.2. A session counts until the MTA
    has answered all that the client sent. If a client resets its connection, the session ends at
    once, and the MTA's connection is closed.
    """
    sessions_per_address: Annotated[int, _whole(0, zero="no limit")] = 100
    """Sessions of one client address (IPv6: per /64) over all workers, and all replicas of
    `[cluster]`; then it gets 421 4.7.0.
    """
    new_sessions_per_minute: Annotated[int, _whole(0, zero="no limit")] = 0
    """New sessions of one client address in a minute over all workers, and all replicas of
    `[cluster]`; then it gets 421 4.7.0. A token bucket: this many at once, and then one after each
    such part of a minute.
    """
    commands_per_second: Annotated[int, _whole(0, zero="no limit")] = 0
    """Commands of one session in a second. A faster client is read more slowly."""
    nat64: Nat64Networks = []
    """IPv6 networks of a NAT64, besides `64:ff9b::/96`. Clients from them are counted by their
    embedded IPv4 address (RFC 6052).
    """
    exempt: Networks = field(default_factory=lambda: [_network("127.0.0.0/8"), _network("::1/128")])
    """Networks whose clients are not counted by address, such as a load balancer's."""
    event_loop_lag: Annotated[float, _seconds_or("no limit", 3600)] = 2.0
    """How late the event loop of a worker may be; then new clients get 421 4.3.2. They also get it
    when a worker is short of file descriptors; when there are none left, they wait.
    """
    message_bytes: Annotated[int, _bytes(0, zero="no limit")] = 0
    """The largest message. The `SIZE` that clients see is lowered to it. A larger message gets 552:
    at MAIL if its size is declared, at the end of data, or at the BDAT chunk that exceeds the
    limit, which ends the session.
    """
    recipients: Annotated[int, _whole(0, zero="no limit")] = 0
    """Accepted recipients of a message; further ones get 452 4.5.3. LIMITS RCPTMAX (RFC 9422) is
    lowered to it, or announced if the MTA has none.
    """


class TimeoutSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The longest waits, in seconds."""

    connect: Seconds = 30.0
    """For connecting to a server, over all addresses of its name; then the next server is tried."""
    greeting: Seconds = 300.0
    """For the greeting of a server; then the next server is tried."""
    command: Seconds = 300.0
    """For the MTA's reply to a command."""
    data: Seconds = 120.0
    """For the MTA's reply to DATA."""
    content: Seconds = 180.0
    """For further message content from the client, and for an MTA that does not accept content
    (`backend_time_limit`).
    """
    message: Annotated[float, _seconds_or("no limit")] = 7200.0
    """For all the content of a message, or of one BDAT chunk, however steadily it arrives."""
    end_of_data: Seconds = 600.0
    """For the MTA's reply to the end of data."""
    client: Seconds = 300.0
    """For the client's next command; for a complete command line, from its first byte on; and for a
    client that does not read its replies.
    """
    tls_handshake: Seconds = 30.0
    """For a TLS handshake."""
    proxy_header: Seconds = 5.0
    """For a PROXY header."""
    drain: Seconds = 60.0
    """For sessions to finish when the service stops; after a reload, for sessions in the old
    workers that are between transactions.
    """
    transaction_grace: Seconds = 3600.0
    """For a transaction in an old worker after a reload; then the client gets 421."""
    heartbeat: Seconds = 20.0
    """For the heartbeat of a worker; then the worker is replaced."""
    reply_hold: Seconds = 0.2
    """For the other replies of a group, while a reply is held for them."""


class LogSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is logged, and in which format; deploy/reference/events.md has all events."""

    level: LogLevel = "info"
    """The lowest level that is logged; `debug` has a line for each exchange."""
    format: LogFormat = "auto"
    """`json`, `console` (coloured lines), `auto` (console on a terminal, else json), or `syslog`:
    json with a syslog priority before each line, for `logger --prio-prefix`.
    """
    session_lines_per_second: Annotated[int, _whole(0, zero="no limit")] = 100
    """Log lines of one session in a second; those of five seconds may come at once. Further lines
    are left out and counted (`log_lines_suppressed`), except `message_relayed`. `auth_refused` of
    an address, and at level `debug` the lines of exchanges, are counted separately.
    """
    address_lines_per_second: Annotated[int, _whole(0, zero="no limit")] = 500
    """The same for all sessions of one client address (IPv6: per /64) in one worker."""


class TraceSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which sessions are recorded; see deploy/tracing.md."""

    directory: Directory = ""
    """The directory of the trace files. Left out, nothing is recorded."""
    when: Literal["all", "errors", "off"] = "all"
    """`all`: every session. `errors`: only sessions in which something failed. `off`: none. See
    deploy/tracing.md#traces.
    """
    networks: Networks = []
    """Record only clients of these networks; left out: all. `smtpproxy trace watch` shows message
    content of no others.
    """
    content: Literal["none", "headers", "full"] = "none"
    """Whether message content is recorded: `none`, only its `headers`, or in `full`. It is the most
    that `smtpproxy trace watch` shows, too.
    """
    max_content: ContentSize = 1024 * 1024
    """With `content = "full"`, the most that is recorded of a message."""
    max_file: Size = 64 * 1024 * 1024
    """Each worker starts a new file at this size."""
    max_files: Annotated[int, _whole(1)] = 10
    """The most files that each worker keeps; the oldest is removed."""


class OtelSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Spans for OpenTelemetry: `pip install 'smtpproxy[otel]'`; see deploy/tracing.md."""

    endpoint: Annotated[
        str,
        ParsedBy(
            _collector, 'the URL of a collector, such as "http://127.0.0.1:4318"', secret=True
        ),
    ] = ""
    """The URL of a collector that accepts OTLP over HTTP, without `/v1/traces`; left out, no spans
    are made. See deploy/tracing.md#opentelemetry.
    """
    sample: Annotated[
        float, Meta(ge=0, le=1, description="a number from 0 (none) to 1 (all of them)")
    ] = 0.1
    """The share of sessions of which spans are made."""


class ClusterSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits over all replicas, by a Redis or Valkey server; see deploy/cluster.md."""

    url: Annotated[
        str, ParsedBy(_store, 'a URL in quotes, such as "redis://10.0.0.9:6379"', secret=True)
    ] = ""
    """The server: `redis://[USER[:PASSWORD]@]HOST[:PORT][/DATABASE]`, or `rediss://` for TLS with a
    verified certificate. Left out, each replica has its limits for itself.
    """
    password_file: Annotated[str, _whole_path("/etc/smtpproxy/redis-password")] = ""
    """A file that holds the password instead of `url`, read at the start and at a reload. Other
    accounts may not read it, nor the group change it: mode 0640 at most.
    """
    # Once loaded, `url` has what is in it.
    name: TableName = "smtpproxy"
    """The name of the cluster: replicas with the same name share their limits. Backends of the same
    name share `max_connections`.
    """
    replicas: Annotated[int, _whole(0, 1000, zero="not given")] = 0
    """How many replicas are expected; must be given. While the server cannot be used, each replica
    opens connections only while it has fewer than its share: `max_connections` / `replicas`,
    rounded down, at least 1.
    """
    lease: Annotated[
        float, Meta(ge=1, le=3600, description="a number of seconds from 1 to 3600")
    ] = 30.0
    """How many seconds the connections of a replica count after it was last heard."""


class AdminSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Metrics and the live page."""

    address: AdminAddress = Address()
    """The address of metrics, health and the live page, in plain HTTP; left out, there is none.
    `[::]` as for listeners. A reload can change it.
    """
    token: Annotated[str, ParsedBy(read_token, "a text in quotes", secret=True)] = ""
    """Needed unless the address is loopback or a Unix socket: `Authorization: Bearer TOKEN`, or
    once `/?token=TOKEN` in a browser. At least 16 letters and digits. `/healthz` and `/readyz`
    need none.
    """
    token_file: Annotated[str, _whole_path("/etc/smtpproxy/admin-token")] = ""
    """A file that holds the token instead of `token`, read at the start and at a reload. Other
    accounts may not read it, nor the group change it: mode 0640 at most.
    """
    # Once loaded, `token` has what is in it.
    ready: Literal["all", "any"] = "all"
    """When `/readyz` is 200: if `all` backends that listeners name have a server that is up, or if
    `any` of them has one.
    """


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the whole service."""

    hostname: HostName = field(default_factory=socket.gethostname)
    """The name in the proxy's own 421 replies and in health checks."""
    instance: InstanceName = field(default_factory=host_instance)
    """The name of this instance of the service: in each log line, as the label
    `smtpproxy_instance` of each metric, and in `smtpproxy status`. Each replica needs its own.
    """
    workers: WorkerCount = 1
    """Processes that serve clients. 0: one for each CPU."""
    listeners: Annotated[
        dict[TableName, ListenerSettings],
        WrittenLike("a table for each listener, written [listeners.NAME]"),
    ] = {}
    backends: Annotated[
        dict[TableName, BackendSettings],
        WrittenLike("a table for each backend, written [backends.NAME]"),
    ] = {}
    limits: LimitSettings = LimitSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    log: LogSettings = LogSettings()
    trace: TraceSettings = TraceSettings()
    otel: OtelSettings = OtelSettings()
    cluster: ClusterSettings = ClusterSettings()
    admin: AdminSettings = AdminSettings()
