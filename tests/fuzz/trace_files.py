"""One execution with a trace file: each command reads it, and its output is checked."""

import asyncio
import json
import re
import struct
import tempfile
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from random import Random

from click.testing import CliRunner, Result

from smtpproxy.cli import main
from smtpproxy.text.escaping import printable
from smtpproxy.trace import terminal
from smtpproxy.trace.header_pattern import HeaderPattern
from smtpproxy.trace.reader import (
    Problems,
    RecordedSession,
    TraceFile,
    TraceReader,
    printable_record,
)
from smtpproxy.trace.records import HEADER, Exchanged
from smtpproxy.trace.replay import play
from tests.support.hostile_text import check_shown

HERE = Path(__file__).parent
CORPUS = HERE / "trace_corpus"
WORDS = HERE / "trace_words"
LONGEST = 6000
"""Bytes of a file."""
SESSION = "s1"
TAGS = [
    "html",
    "head",
    "meta",
    "meta",
    "title",
    "style",
    "body",
    "main",
    "section",
    *["script"] * 2,
]
SUBJECT = HeaderPattern.of("Subject=a")
STATISTICS_TAGS = {
    *("html", "head", "meta", "title", "style", "body", "main", "section", "h1", "h2", "p"),
    *("table", "thead", "tbody", "tr", "th", "td", "i", "span"),
}
REPLIES = b"220 mx\r\n" + b"354 go\r\n250-ok\r\n250 ok\r\n" * 500


def run_trace(octets: bytes) -> list[int]:
    """Run each command on a file; fail if anything is wrong; return the exit codes."""
    directory = _directory()
    file = directory / "trace-1.jsonl"
    file.write_bytes(octets)
    page, capture = directory / "page", directory / "capture"
    statistics = directory / "statistics"
    for each in (page, capture, statistics):
        each.unlink(missing_ok=True)
    codes = [
        _ran("list").exit_code,
        _ran("show", SESSION).exit_code,
        _ran("export", SESSION, "--html", str(page)).exit_code,
        _ran("export", SESSION, "--pcapng", str(capture)).exit_code,
    ]
    _ran("stats", "--json", "--html", str(statistics))
    _check_statistics(statistics.read_text())
    if page.exists():
        _check_page(page.read_text())
    if capture.exists():
        _check_capture(capture.read_bytes())
    for record, _ in TraceFile(file, Problems()).records(b""):
        if reported := terminal.line_of(printable_record(record)):
            check_shown(reported.plain)
        if isinstance(record, Exchanged):
            SUBJECT.is_in(record.content)
    try:
        session = TraceReader(file).session(SESSION)
    except ValueError:
        return codes
    asyncio.run(_play(session))
    return codes


@cache
def _directory() -> Path:
    return Path(tempfile.mkdtemp(prefix="smtpproxy-fuzz-trace-"))


def _ran(command: str, *arguments: str) -> Result:
    argv = ["trace", command, "-d", str(_directory()), *arguments]
    result = CliRunner().invoke(main, argv, env={"COLUMNS": "100"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 1, 3), result.exit_code
    assert not result.exit_code or result.stderr.strip()
    for shown in (result.stdout, result.stderr):
        check_shown(shown)
    return result


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002
        self.found.append(tag)


def _check_page(page: str) -> None:
    tags = _Tags()
    tags.feed(page)
    assert tags.found == TAGS, tags.found
    title = re.search(r"<title>(.*?)</title>", page, re.DOTALL)
    assert title is not None
    assert title[1].isprintable()
    data = re.search(r'id="records">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    check_shown(data[1])
    assert isinstance(json.loads(data[1]), list)


def _check_statistics(page: str) -> None:
    check_shown(page)
    tags = _Tags()
    tags.feed(page)
    assert set(tags.found) <= STATISTICS_TAGS, tags.found
    assert tags.found.count("body") == 1


def _check_capture(octets: bytes) -> None:
    at = 0
    while at < len(octets):
        (length,) = struct.unpack_from("<I", octets, at + 4)
        assert length >= 12
        assert length % 4 == 0
        at += length
        assert struct.unpack_from("<I", octets, at - 4) == (length,)
    assert at == len(octets)


class _Sink:
    """Collects what is sent, like a stream."""

    def write(self, octets: bytes) -> None:
        pass

    async def drain(self) -> None:
        pass

    def close(self) -> None:
        pass


async def _play(session: RecordedSession) -> None:
    for lock_step in (True, False):
        reader = asyncio.StreamReader()
        reader.feed_data(REPLIES)
        reader.feed_eof()
        sink: asyncio.StreamWriter = _Sink()  # type: ignore[assignment]  # all that is used of one
        result = await play(session, reader, sink, lock_step=lock_step, as_fast=True)
        check_shown(str(printable(result.stopped)))


def trace_mutations(count: int, seed: int) -> list[bytes]:
    """Return this many files mutated from the corpus, the same in every run."""
    chance = Random(seed)
    files = [file.read_bytes() for file in sorted(CORPUS.iterdir())]
    words = re.findall(r'^"(.*)"$', WORDS.read_text(), re.MULTILINE)
    dictionary = [word.encode().decode("unicode_escape").encode("latin-1") for word in words]
    made = []
    for _ in range(count):
        lines = chance.choice(files).split(b"\n")
        for _ in range(chance.randint(1, 3)):
            lines = _mutated(lines, chance, files, dictionary)
        made.append(b"\n".join(lines)[:LONGEST])
    return made


def _mutated(
    lines: list[bytes], chance: Random, files: list[bytes], dictionary: list[bytes]
) -> list[bytes]:
    """Return lines with one change: of their order, of a value, or of any byte."""
    at = chance.randrange(len(lines))
    line = lines[at]
    other = chance.choice(chance.choice(files).split(b"\n"))
    values = list(re.finditer(rb'(?<=":)("[^"]*"|[\d.]+|\[.*?\])', line))
    place = chance.randint(0, len(line))
    options = [
        [other],
        [line, line],
        [],
        [line[:place]],
        [line[:place] + bytes([chance.randrange(256)]) + line[place + 1 :]],
        [line[:place] + chance.choice(dictionary) + line[place:]],
        [HEADER.strip(), line],
    ]
    if values:
        value = chance.choice(values)
        new = chance.choice(dictionary)
        options += [[line[: value.start()] + new + line[value.end() :]]] * 10
    return [*lines[:at], *chance.choice(options), *lines[at + 1 :]] or [b""]
