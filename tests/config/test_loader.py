"""Settings: what files and flags may contain; every mistake is reported with its place."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from smtpproxy.config.address import Address
from smtpproxy.config.decoding import ConfigError, ParsedBy
from smtpproxy.config.loader import load
from smtpproxy.config.schema import BackendSettings, ListenerSettings, Settings
from tests.support.settings_file import GOOD, write

WRONG_EVERYWHERE = """\
# a comment
hostnam = "x"
hostname = "a b"

[listeners.first]
address = "127.0.0.1:25"
sync = "saef"
backend = "old"

[listeners.second]
tlss = "off"
address = "127.0.0.1:25"
bare_newlines = 7
capabilities = { hide = [
  "SIZE",
  "FOO BAR",
  # a comment
  3,
], alow = [] }

[listeners.third]
sync = "off"

[backends.old-mta]
servers = [
  "10.0.0.5:25",
  "10.0.0:25",
]
helo_fallback = "yes"

[backends."b c"]
servers = []

[limits]
command_line = 100
consecutive_errors = true

[timeouts]
reply_hold = inf
data = nan

[log]
level = "warn"
"""


def problems(
    directory: Path, text: str | bytes, **needs: bool
) -> list[tuple[int | None, str, str]]:
    """Return line, key and text of each problem of a file."""
    path = write(directory, text)
    with pytest.raises(ConfigError) as raised:
        load(path, **needs)
    assert all(problem.file == str(path) for problem in raised.value.problems)
    return [(problem.line, problem.key, problem.text) for problem in raised.value.problems]


class TestAGoodFile:
    def test_two_settings_are_enough(self, tmp_path: Path) -> None:
        settings = load(write(tmp_path, GOOD))
        assert settings.listeners == {
            "smtp": ListenerSettings(address=Address("127.0.0.1", 2525), backend="old")
        }
        assert settings.backends == {"old": BackendSettings(servers=[Address("10.0.0.5", 25)])}
        assert settings.hostname
        assert settings.instance
        assert (settings.limits.command_line, settings.timeouts.reply_hold) == (2048, 0.2)

    def test_all_settings(self, tmp_path: Path) -> None:
        settings = load(
            write(
                tmp_path,
                """
hostname = "mx.example.org"
instance = "mx1.example_2-b"
log = { level = "debug", format = "json" }
workers = 0
timeouts = { connect = 1, reply_hold = 0.05, heartbeat = 5 }
[admin]
address = "[::]:8025"
token = "0123456789abcdef"
[trace]
directory = "/var/tmp/smtpproxy"
when = "errors"
networks = ["::ffff:10.0.0.0/104", "2001:db8::1"]
content = "full"
max_content = "8KiB"
max_file = "1GiB"
max_files = 1
[listeners.smtp]
address = "[::1]:0"
backend = "b"
sync = "strict"
bare_newlines = "reject"
capabilities = { hide = ["size"], allow = ["X-Ours"] }
[backends.a]
servers = ["unix:/run/a.sock"]
[backends.b]
servers = ["mta.Example:25", "10.0.0.6:2525"]
pipelining = "never"
chunking = "add"
helo_fallback = false
guard_data = false
balance = "least"
retry_after = 1
health_check_interval = 0.5
max_connections = 9
max_wait = 5
[limits]
queue_commands = 1
queue_bytes = 12288
command_line = 512
auth_line = 12288
consecutive_errors = 1
sessions = 9
sessions_per_address = 8
new_sessions_per_minute = 7
event_loop_lag = 0.5
commands_per_second = 4
exempt = ["2001:DB8::/32"]
message_bytes = 6
recipients = 5
""",
            )
        )
        assert settings.instance == "mx1.example_2-b"
        (listener,) = settings.listeners.values()
        assert (listener.backend, listener.sync, listener.bare_newlines) == (
            "b",
            "strict",
            "reject",
        )
        assert listener.capabilities.hide == ["SIZE"]
        assert listener.capabilities.allow == ["X-OURS"]
        assert list(map(str, settings.backends["b"].servers)) == ["mta.example:25", "10.0.0.6:2525"]
        assert not settings.backends["b"].guard_data
        assert [each.chunking for each in settings.backends.values()] == ["pass", "add"]
        assert (settings.workers, settings.timeouts.heartbeat) == (0, 5)
        assert (settings.backends["b"].balance, settings.backends["b"].health_check_interval) == (
            "least",
            0.5,
        )
        assert settings.timeouts.connect == 1.0
        assert (str(settings.admin.address), len(settings.admin.token)) == ("[::]:8025", 16)
        trace = settings.trace
        assert (trace.when, trace.content, trace.max_files) == ("errors", "full", 1)
        assert (trace.max_content, trace.max_file) == (8192, 1 << 30)
        assert [each.text for each in trace.networks] == ["10.0.0.0/8", "2001:db8::1/128"]
        limits = settings.limits
        assert (limits.sessions, limits.sessions_per_address) == (9, 8)
        assert (limits.new_sessions_per_minute, limits.event_loop_lag) == (7, 0.5)
        assert [network.text for network in limits.exempt] == ["2001:db8::/32"]
        assert (limits.message_bytes, limits.recipients) == (6, 5)
        assert limits.commands_per_second == 4

    @pytest.mark.parametrize(
        ("host", "instance"),
        [
            ("mx1.example.org", "mx1.example.org"),
            ("-büro pc\n", "b-ro-pc-"),
            ("x" * 65, "x" * 64),
            ("_", "localhost"),
        ],
    )
    def test_the_host_name_becomes_that_of_the_instance(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, instance: str
    ) -> None:
        monkeypatch.setattr("socket.gethostname", lambda: host)
        default = load(write(tmp_path, GOOD)).instance
        assert default == instance
        assert load(write(tmp_path, f'instance = "{default}"\n{GOOD}')).instance == instance

    def test_a_byte_order_mark_is_no_problem(self, tmp_path: Path) -> None:
        assert load(write(tmp_path, b"\xef\xbb\xbf" + GOOD.encode())).listeners

    def test_port_0_may_be_asked_for_twice(self, tmp_path: Path) -> None:
        more = "".join(f'[listeners.{name}]\naddress = "127.0.0.1:0"\n' for name in ("a", "b"))
        assert len(load(write(tmp_path, more + GOOD)).listeners) == 3


class TestMistakes:
    def test_all_problems_are_reported_at_once_each_with_its_line(self, tmp_path: Path) -> None:
        reported = [(line, key) for line, key, _ in problems(tmp_path, WRONG_EVERYWHERE)]
        assert reported == [
            (2, "hostnam"),
            (3, "hostname"),
            (7, "listeners.first.sync"),
            (8, "listeners.first.backend"),
            (10, "listeners.second.backend"),
            (11, "listeners.second.tlss"),
            (12, "listeners.second.address"),
            (13, "listeners.second.bare_newlines"),
            (16, "listeners.second.capabilities.hide[1]"),
            (18, "listeners.second.capabilities.hide[2]"),
            (19, "listeners.second.capabilities.alow"),
            (21, "listeners.third.address"),
            (21, "listeners.third.backend"),
            (27, "backends.old-mta.servers[1]"),
            (29, "backends.old-mta.helo_fallback"),
            (31, 'backends."b c"'),
            (32, 'backends."b c".servers'),
            (35, "limits.command_line"),
            (36, "limits.consecutive_errors"),
            (39, "timeouts.reply_hold"),
            (40, "timeouts.data"),
            (43, "log.level"),
        ]

    @pytest.mark.parametrize(
        ("more", "line", "key", "text"),
        [
            ('[log]\nlevel = "warn"', 7, "log.level", 'did you mean "warning"?'),
            ("[log]\nformt = 1", 7, "log.formt", 'is not a known setting; did you mean "format"?'),
            (
                '[admin]\naddress = "0.0.0.0:8025"',
                6,
                "admin.token",
                "is missing: it is needed for an address that other machines",
            ),
            ('[admin]\naddress = "mx.example:80"', 7, "admin.address", "is a name"),
            ('[admin]\ntoken = "short"', 7, "admin.token", "is too short"),
            ("[trac]", 6, "trac", 'is not a known setting; did you mean "trace"?'),
            ("[tls]", 6, "tls", "is not a known setting; known here:"),
            ('[trace]\nwhen = "errors"', 6, "trace.directory", "is missing; write, for"),
            ('[trace]\ndirectory = "x"', 7, "trace.directory", "needs the whole path"),
            ('[trace]\ndirectory = "/dev/null/x"', 7, "trace.directory", "/dev/null is not a dir"),
            ('[trace]\nwhen = "al"', 7, "trace.when", 'did you mean "all"?'),
            ("[otel]\nsample = 0.5", 6, "otel.endpoint", "is missing; write, for"),
            ('[otel]\nendpoint = "127.0.0.1:4318"', 7, "otel.endpoint", "is not the URL of a"),
            ('[otel]\nendpoint = "http://a:b@c"', 7, "otel.endpoint", "is not the URL of a"),
            ('[otel]\nendpoint = "http://c/#x"', 7, "otel.endpoint", "is not the URL of a"),
            ('[otel]\nendpoint = "http://c:x"', 7, "otel.endpoint", "is not the URL of a"),
            ("[otel]\nsample = 10", 7, "otel.sample", "must be a number from 0"),
            ('[trace]\nnetworks = ["10.0.0.1/8"]', 7, "trace.networks[0]", "inside a network"),
            ("[trace]\nnetworks = 3", 7, "trace.networks", "must be a list of networks"),
            ("[trace]\nmax_file = 65536", 7, "trace.max_file", 'such as "64MiB"'),
            ('[trace]\nmax_file = "64MB"', 7, "trace.max_file", "is not a size"),
            ('[trace]\nmax_content = "4KB"', 7, "trace.max_content", "is not a size"),
            ('[trace]\nmax_content = "17MiB"', 7, "trace.max_content", 'to "16MiB"'),
            ("[trace]\nmax_files = 0", 7, "trace.max_files", "must be a whole number from 1"),
            ("limits = 3", 6, "backends.old.limits", "is not a known setting"),
            (
                "pipelining = true",
                6,
                "backends.old.pipelining",
                'must be "auto" or "never", not true',
            ),
            (
                "health_check_interval = -1",
                6,
                "backends.old.health_check_interval",
                "from 0 (never) to 86400",
            ),
            ('chunking = "never"', 6, "backends.old.chunking", 'must be "pass" or "add"'),
            (
                'chunking = "add"\n[listeners.smtp.capabilities]\nhide = ["chunking"]',
                6,
                "backends.old.chunking",
                'cannot be "add": each listener that uses it hides "CHUNKING"',
            ),
            ("max_connections = -1", 6, "backends.old.max_connections", "a whole number from 0"),
            ('balance = "round"', 6, "backends.old.balance", 'must be "first" or "least"'),
            ("guard_data = 1", 6, "backends.old.guard_data", "must be true or false, not 1"),
            (
                "[limits]\nconsecutive_errors = -1",
                7,
                "limits.consecutive_errors",
                "must be a whole number from 0",
            ),
            ('[limits]\nnat64 = ["10.0.0.0/8"]', 7, "limits.nat64[0]", "the prefix of a NAT64"),
            ('[limits]\nnat64 = ["2001:db8::/33"]', 7, "limits.nat64[0]", "32, 40, 48, 56, 64 or"),
            ('[limits]\nnat64 = ["nat"]', 7, "limits.nat64[0]", "the prefix of a NAT64"),
            ('[limits]\nexempt = ["10.0.0.1/8"]', 7, "limits.exempt[0]", 'write "10.0.0.0/8"'),
            ("[limits]\nsessions = -1", 7, "limits.sessions", "a whole number from 0"),
            (
                "[limits]\nevent_loop_lag = -1",
                7,
                "limits.event_loop_lag",
                "from 0 (no limit) to 3600",
            ),
            ("[limits]\nconsecutive_errors = 1.5", 7, "limits.consecutive_errors", "not 1.5"),
            ("[limits]\nqueue_bytes = 5000", 7, "limits.queue_bytes", "12288 bytes"),
            ("[timeouts]\ndata = 0", 7, "timeouts.data", "must be a number of seconds above 0"),
            ("[timeouts]\ndata = true", 7, "timeouts.data", "not true"),
            ("[[backends]]", 6, "", "is not TOML"),
            (
                '[listeners.second]\naddress = "mx.example:25"',
                7,
                "listeners.second.address",
                "is a name",
            ),
            (
                '[listeners.second]\naddress = "fd:"',
                7,
                "listeners.second.address",
                'such as "fd:smtp"',
            ),
            (
                '[listeners.second]\naddress = "127.0.0.1:2525"',
                7,
                "listeners.second.address",
                "like that of listeners.smtp",
            ),
            (
                '[listeners.b]\naddress = "[::1]:1"\ncapabilities = {hide = ["A"], allow = ["a"]}',
                8,
                "listeners.b.capabilities.allow[0]",
                "is hidden as well",
            ),
            (
                '[listeners.b]\naddress = "[::1]:1"\nearly_pipelining = true\nsync = "strict"',
                8,
                "listeners.b.early_pipelining",
                'cannot be used with sync = "strict"',
            ),
            (
                "[listeners.b]\naddress='[::1]:1'\nearly_pipelining=true\ncapabilities.hide=['pipelining']",
                8,
                "listeners.b.early_pipelining",
                'needs "PIPELINING", which is hidden',
            ),
            (
                '[listeners.b]\naddress = "[::1]:1"\ncapabilities = {allow = ["prdr"]}',
                8,
                "listeners.b.capabilities.allow[0]",
                '"PRDR" can never pass: it changes the number of replies to a message',
            ),
            (
                '[listeners.b]\naddress = "[::1]:1"\ncapabilities = {allow = ["XPROXYTO"]}',
                8,
                "listeners.b.capabilities.allow[0]",
                "can never pass: it lets the client act for another client",
            ),
        ],
    )
    def test_what_is_wrong_and_what_to_do(
        self, tmp_path: Path, more: str, line: int, key: str, text: str
    ) -> None:
        (reported,) = problems(tmp_path, GOOD + more)
        assert reported[:2] == (line, key)
        assert text in reported[2]

    @pytest.mark.parametrize("name", ["", "mx 1", "-mx", "mx/1", "m\u00fc", "x" * 65])
    def test_a_name_that_cannot_be_that_of_an_instance(self, tmp_path: Path, name: str) -> None:
        (reported,) = problems(tmp_path, f'instance = "{name}"\n{GOOD}')
        assert reported[:2] == (1, "instance")
        assert "64 at most, such as" in reported[2]

    def test_a_problem_that_hides_others_is_reported_alone(self, tmp_path: Path) -> None:
        """What is wrong as a whole is not also searched for mistakes inside, nor does it crash."""
        text = """\
listeners.a = 3
listeners.b = {address = 4, backend = 5}
listeners.c = {address = "[::1]:1", capabilities = 6}
listeners.d = {address = "[::1]:2", capabilities = {hide = 7}}
limits = 8
[backends]
a = 9
b.servers = 10
"""
        reported = [(line, key) for line, key, _ in problems(tmp_path, text)]
        assert (1, "listeners.a") in reported
        assert (2, "listeners.b.backend") in reported
        assert (4, "listeners.d.capabilities.hide") in reported
        assert (5, "limits") in reported
        assert (7, "backends.a") in reported
        assert (8, "backends.b.servers") in reported
        assert problems(tmp_path, "listeners = 1\nbackends = []\n")[0][:2] == (1, "listeners")

    @pytest.mark.parametrize("table", ["[[listener]]", "[listener]", "[listener.smtp]"])
    def test_a_listener_under_the_key_in_the_singular(self, tmp_path: Path, table: str) -> None:
        none, reported = problems(tmp_path, GOOD.replace("[listeners.smtp]", table))
        assert none[2].startswith("has no listener")
        assert reported[:2] == (1, "listener")
        assert reported[2].endswith("write each listener as a table with a name, [listeners.NAME]")

    @pytest.mark.parametrize(("table", "key"), [("[[listeners]]", ""), ("[listeners]", ".address")])
    def test_a_listener_without_a_name(self, tmp_path: Path, table: str, key: str) -> None:
        (reported,) = problems(tmp_path, GOOD.replace("[listeners.smtp]", table))
        assert reported[1] == f"listeners{key}"
        assert "a table for each listener, written [listeners.NAME]" in reported[2]

    def test_an_invalid_name_of_a_listener_is_reported(self, tmp_path: Path) -> None:
        (reported,) = problems(tmp_path, GOOD.replace("listeners.smtp", 'listeners."a b"'))
        assert reported[:2] == (1, 'listeners."a b"')
        assert "is not a valid name" in reported[2]

    def test_servers_as_one_text(self, tmp_path: Path) -> None:
        (reported,) = problems(tmp_path, GOOD.replace('["10.0.0.5:25"]', '"10.0.0.5:25"'))
        assert reported[:2] == (5, "backends.old.servers")
        assert 'a list of addresses, such as ["10.0.0.5:25"], not "10.0.0.5:25"' in reported[2]

    def test_chunking_may_be_hidden_by_one_of_several_listeners(self, tmp_path: Path) -> None:
        smtp = '[listeners.smtp]\nbackend = "old"\ncapabilities.hide = ["CHUNKING"]'
        text = GOOD.replace("[listeners.smtp]", smtp) + 'chunking = "add"\n[backends.new]\n'
        text += 'servers = ["10.0.0.6:25"]\n[listeners.b]\naddress = "[::1]:1"\nbackend = "new"\n'
        ((_, key, _),) = problems(tmp_path, text)
        assert key == "backends.old.chunking"
        load(write(tmp_path, text.replace('backend = "new"', 'backend = "old"')))

    def test_an_unknown_backend(self, tmp_path: Path) -> None:
        text = GOOD.replace("\n\n", '\nbackend = "odl"\n\n')
        (reported,) = problems(tmp_path, text)
        assert reported == (
            3,
            "listeners.smtp.backend",
            '"odl" is not the name of a backend; did you mean "old"?',
        )

    def test_a_backend_left_out_among_several(self, tmp_path: Path) -> None:
        (reported,) = problems(tmp_path, GOOD + '[backends.new]\nservers = ["10.0.0.6:25"]')
        assert reported[:2] == (1, "listeners.smtp.backend")
        assert '"old", "new"' in reported[2]

    def test_an_empty_file_lacks_both_sides(self, tmp_path: Path) -> None:
        listener, backend = problems(tmp_path, "")
        assert listener[0] is backend[0] is None
        assert "has no listener; add [listeners.NAME]" in listener[2]
        assert "has no backend; add [backends.NAME]" in backend[2]

    def test_a_file_may_omit_what_flags_give(self, tmp_path: Path) -> None:
        path = write(tmp_path, '[listeners.smtp]\naddress = "[::1]:1"\nbackend = "gone"\n')
        assert load(path, need_backend=False).listeners["smtp"].backend == "gone"
        assert load(write(tmp_path, ""), need_listener=False, need_backend=False).listeners == {}

    def test_control_characters_of_a_value_are_escaped(self, tmp_path: Path) -> None:
        text = GOOD + '"\\u001b[31m" = 1\nhelo_fallback = "\\u009b\\n' + "x" * 500 + '"\n'
        for _, key, what in problems(tmp_path, text):
            assert (key + what).isprintable()
            assert len(what) < 350


class TestAFileThatIsNoSettings:
    def test_a_syntax_error_has_line_and_column(self, tmp_path: Path) -> None:
        (reported,) = problems(tmp_path, GOOD + "[limits]\nline == 3\n")
        assert reported[:2] == (7, "")
        assert reported[2].startswith("is not TOML: ")
        assert "(column 7)" in reported[2]

    def test_an_unfinished_file_is_reported_at_its_end(self, tmp_path: Path) -> None:
        (reported,) = problems(tmp_path, GOOD + "x = [\n")
        assert reported[0] == 6
        assert reported[2].startswith("is not TOML: ")

    @pytest.mark.parametrize("text", ["a = " + "[" * 5000, "a = " + "9" * 5000])
    def test_nesting_that_is_too_deep_for_tomllib_is_reported(
        self, tmp_path: Path, text: str
    ) -> None:
        (reported,) = problems(tmp_path, text)
        assert reported[2].startswith("is not TOML: ")

    def test_bytes_that_are_not_utf_8_are_reported(self, tmp_path: Path) -> None:
        (reported,) = problems(tmp_path, GOOD.encode() + b'x = "\xe4"\n')
        assert reported == (6, "", "byte 0xe4 is not UTF-8; save the file as UTF-8")

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"gone.toml: cannot be read: no such file"):
            load(tmp_path / "gone.toml")

    def test_a_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot be read: is a directory"):
            load(tmp_path)


def _parsers(wanted: object) -> Iterator[ParsedBy]:
    """Yield each parser in a type of the settings, or in those of the fields of a table."""
    if isinstance(wanted, ParsedBy):
        yield wanted
    elif isinstance(wanted, type) and issubclass(wanted, msgspec.Struct):
        for field in msgspec.structs.fields(wanted):
            yield from _parsers(field.type)
    else:
        for each in (*get_args(wanted), *getattr(wanted, "__metadata__", ())):
            yield from _parsers(each)


_MARKS = sorted(
    {mark for mark in _parsers(Settings) if not mark.secret},
    key=lambda mark: mark.expected,
)


_WRONG = (
    *("", " ", "x y", "-", "1", "64MB", "9999GiB", "999", "cert.pem", "10.0.0.0/99", "10.0.0.1/8"),
    *(":25", "25", "h", "h:99999", "h:smtp", "h:0", "a b:25", "1.2.3:25", "::1:25", "[x]:25"),
    *("unix:smtp.sock", "fd:", "smtp://h:25", "0.0.0.0:25"),
)


@pytest.mark.parametrize("mark", _MARKS, ids=lambda mark: mark.expected)
def test_every_error_of_a_format_has_an_example(mark: ParsedBy) -> None:
    problems = [mark.expected]
    for text in _WRONG:
        try:
            mark.parse(text)
        except ValueError as error:
            problems.append(str(error))
    assert len(problems) > 1
    example = re.compile('(such as|for example,|write|brackets:|address,) "[^"]+"')
    assert [each for each in problems if not example.search(each)] == []
