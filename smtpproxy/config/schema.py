"""Settings: the list of all that smtpproxy can be told, typed, with bounds and defaults.

What is not here is an error, never ignored. `smtpproxy.config.loader` reads them from a file and
from flags; deploy/reference/settings.md explains each.
"""

import re
import socket
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from smtpproxy.config.address import (
    NAT64_BITS,
    Address,
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
Identity = Literal["none", "proxy-v1", "proxy-v2", "xclient", "xforward", "transparent"]
LogFormat = Literal["auto", "console", "json"]

_MOST = 1_000_000_000


def _host_name(text: str) -> str:
    """Read the name the proxy gives itself in its replies: a domain or an address literal."""
    if len(text) <= 255 and re.fullmatch(r"[A-Za-z0-9_.-]+|\[[A-Za-z0-9:.]+\]", text, re.ASCII):
        return text
    raise ValueError('is not a host name; write, for example, "mx.example.org"')


def _table_name(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text, re.ASCII):
        return text
    raise ValueError("is not a possible name: letters, digits, hyphens, dots and underscores")


def _capability(text: str) -> str:
    """Read an esmtp-keyword (RFC 5321 section 4.1.1.1)."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", text, re.ASCII):
        return text.upper()
    raise ValueError(
        'is not a capability: one word of letters, digits and hyphens, such as "CHUNKING"'
    )


class NetworkSetting(Struct, frozen=True):
    """A network of IP addresses, in its usual spelling."""

    text: str


def _network(text: str) -> NetworkSetting:
    """Read a network or an address; returned in its usual spelling."""
    try:
        return NetworkSetting(str(canonical_network(text)))
    except ValueError:
        raise ValueError(
            'is not a network; write, for example, "10.0.0.0/8", "2001:db8::/32" or "192.0.2.1"'
        ) from None


def _nat64_network(text: str) -> NetworkSetting:
    """Read the prefix of a NAT64; returned in its usual spelling."""
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
    """Return the reader of a path from the root on; what is there is looked at by who uses it."""

    def read(text: str) -> str:
        if text.startswith("/") and "\0" not in text:
            return text
        raise ValueError(f'needs the whole path, such as "{example}"')

    return ParsedBy(read, f'a path, such as "{example}"')


def _mode(text: str) -> str:
    """Read the mode of a file."""
    if re.fullmatch("0?[0-7]{3}", text):
        return text
    raise ValueError('is not the mode of a file; write, for example, "0660"')


def _served_name(text: str) -> str:
    """Read a host name that clients ask for, or `*.` and the rest of one."""
    if len(text) <= 255 and re.fullmatch(
        r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", text, re.ASCII
    ):
        return text
    raise ValueError('is not a host name; write, for example, "mx.example.org" or "*.example.org"')


def _whole(least: int, most: int = _MOST) -> Meta:
    return Meta(ge=least, le=most, description=f"a whole number from {least} to {most}")


_UNITS = {"": 0, "KiB": 10, "MiB": 20, "GiB": 30}


def _size(text: str) -> int:
    """Read a number of octets: `65536`, `64KiB`, `64MiB` or `1GiB`."""
    found = re.fullmatch(r"([0-9]{1,12}) ?(|[KMG]iB)", text, re.ASCII)
    octets = int(found[1]) << _UNITS[found[2]] if found else 0
    if not 4096 <= octets <= 1 << 40:
        raise ValueError('is not a size from "4KiB" to "1024GiB"')
    return octets


def _token(text: str) -> str:
    if len(text) >= 16 and text.isascii() and text.isprintable() and " " not in text:
        return text
    raise ValueError("is too short or has odd characters; 16 letters and digits at least")


TableName = Annotated[str, ParsedBy(_table_name, "a name")]
ListenAddress = Annotated[Address, ParsedBy(parse_listener, 'an address, such as "127.0.0.1:25"')]
ServerAddress = Annotated[Address, ParsedBy(parse_server, 'an address, such as "10.0.0.5:25"')]
AdminAddress = Annotated[Address, ParsedBy(parse_listener, 'an address, such as "127.0.0.1:8025"')]
HostName = Annotated[str, ParsedBy(_host_name, 'a name, such as "mx.example.org"')]
ServedName = Annotated[str, ParsedBy(_served_name, "a host name")]
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
Size = Annotated[int, ParsedBy(_size, 'a size in quotes, such as "64MiB"')]
Seconds = Annotated[
    float, Meta(gt=0, le=86400, description="a number of seconds above 0, at most 86400 (a day)")
]


class CertificateSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A PEM file with a certificate and its chain, and one with its key if that is another."""

    certificate: File
    key: File = ""


class CapabilitySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Capabilities of the backend to hide from clients, and unknown ones to let through.

    In upper case.
    """

    hide: CapabilityWords = []
    allow: CapabilityWords = []


class ListenerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where clients connect, and how they are treated there."""

    address: ListenAddress
    # Who may connect to a Unix socket; left out: its owner.
    mode: FileMode = ""
    # Left out in the file when there is one backend; once loaded, always the name of a backend.
    backend: str = ""
    sync: Sync = "safe"
    bare_newlines: BareNewlines = "normalize"
    capabilities: CapabilitySettings = CapabilitySettings()
    tls: ListenerTls = "off"
    certificate: File = ""
    key: File = ""
    # Further certificates, by the host name that the client asks for.
    sni: Annotated[
        dict[ServedName, CertificateSettings],
        WrittenLike('a table for each host name, written [listeners.NAME.sni."mx.example.org"]'),
    ] = {}
    require_tls: bool = False
    auth: Literal["any", "tls-only", "hidden"] = "any"
    # Who must send a PROXY header, and who may send XCLIENT and XFORWARD.
    proxy_protocol: Networks = []
    xclient: Networks = []
    # Accept connections to other machines, too.
    transparent: bool = False


class BackendSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A legacy MTA: its servers in order of preference, and what it needs."""

    servers: Annotated[
        list[ServerAddress], WrittenLike('a list of addresses, such as ["10.0.0.5:25"]')
    ]
    pipelining: Literal["auto", "never"] = "auto"
    helo_fallback: bool = True
    guard_data: bool = True
    balance: Literal["first", "least"] = "first"
    # How long a server that has failed is left alone.
    retry_after: Seconds = 10.0
    # How often each server is greeted to see whether it is there; 0: never.
    health_check_interval: Annotated[
        float, Meta(ge=0, le=86400, description="a number of seconds, at most 86400 (0: never)")
    ] = 0.0
    # Connections of the whole service, over all workers; 0: no limit. Above it clients wait.
    max_connections: Annotated[int, _whole(0)] = 0
    max_wait: Seconds = 30.0
    identity: Identity = "none"
    tls: BackendTls = "off"
    verify: bool = True
    ca_file: File = ""
    server_name: Annotated[str, ParsedBy(_host_name, "a host name")] = ""
    minimum_tls: Literal["1.0", "1.1", "1.2", "1.3"] = "1.2"


class LimitSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds. Queue bounds are back-pressure, never an error; sizes are in bytes."""

    queue_commands: Annotated[int, _whole(1)] = 1000
    queue_bytes: Annotated[int, _whole(4096)] = 262144
    # RFC 5321 section 4.5.3.1.4 asks for 512 at least.
    command_line: Annotated[int, _whole(512)] = 2048
    # RFC 4954 section 4 asks for 12288; smaller ones break large Kerberos and OAuth tokens.
    auth_line: Annotated[int, _whole(512)] = 12288
    # One reply of the MTA, all its lines.
    reply_bytes: Annotated[int, _whole(4096)] = 262144
    # 5xx replies in a row, those to RCPT aside, before a client is closed; 0: no bound.
    consecutive_errors: Annotated[int, _whole(0)] = 20
    # Sessions of the whole service, over all workers; 0: no bound.
    sessions: Annotated[int, _whole(0)] = 10000
    # Of one address; an IPv6 network of 64 bits counts as one.
    sessions_per_address: Annotated[int, _whole(0)] = 100
    new_sessions_per_minute: Annotated[int, _whole(0)] = 0
    # Of one session; who is faster is read more slowly. 0: no bound.
    commands_per_second: Annotated[int, _whole(0)] = 0
    # Beside 64:ff9b::/96: networks from which IPv4 clients come through a NAT64, each to be
    # counted by its IPv4 address.
    nat64: Nat64Networks = []
    # Networks that are not counted by address.
    exempt: Networks = field(default_factory=lambda: [_network("127.0.0.0/8"), _network("::1/128")])
    # How late the loop may be before new clients are turned away; 0: never.
    event_loop_lag: Annotated[
        float, Meta(ge=0, le=3600, description="a number of seconds, at most 3600 (0: never)")
    ] = 2.0
    # Bytes of a message, and recipients that may be accepted for one; 0: as the MTA likes.
    message_bytes: Annotated[int, _whole(0)] = 0
    recipients: Annotated[int, _whole(0)] = 0


class TimeoutSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Longest waits, in seconds."""

    connect: Seconds = 30.0
    greeting: Seconds = 300.0
    command: Seconds = 300.0
    data: Seconds = 120.0
    content: Seconds = 180.0
    # All the content of a message, or a chunk of it; 0: no bound.
    message: Annotated[
        float, Meta(ge=0, le=86400, description="a number of seconds, at most 86400 (0: no bound)")
    ] = 7200.0
    end_of_data: Seconds = 600.0
    client: Seconds = 300.0
    tls_handshake: Seconds = 30.0
    proxy_header: Seconds = 5.0
    drain: Seconds = 60.0
    # How long a transaction may go on in an old worker behind a reload.
    transaction_grace: Seconds = 3600.0
    # A worker that says nothing for so long hangs, and is replaced.
    heartbeat: Seconds = 20.0
    reply_hold: Seconds = 0.2


class LogSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is logged, and how it looks (auto: JSON unless standard error is a terminal)."""

    level: LogLevel = "info"
    format: LogFormat = "auto"


class TraceSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is recorded of sessions, in files of `directory`; without one, nothing is."""

    directory: Directory = ""
    when: Literal["all", "errors", "off"] = "all"
    # Of which clients; empty: of all.
    networks: Networks = []
    content: Literal["none", "headers", "full"] = "none"
    # With "full", bytes of each message that are kept.
    max_content: Size = 1024 * 1024
    # Of each worker.
    max_file: Size = 64 * 1024 * 1024
    max_files: Annotated[int, _whole(1)] = 10


class AdminSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where metrics and the live page are served; without an address, nowhere."""

    address: AdminAddress = Address()
    # Needed where other machines can ask.
    token: Annotated[str, ParsedBy(_token, "a text in quotes")] = ""


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything one smtpproxy runs on."""

    hostname: HostName = field(default_factory=socket.gethostname)
    # Processes that serve clients; 0: one for each CPU.
    workers: WorkerCount = 1
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
    admin: AdminSettings = AdminSettings()
