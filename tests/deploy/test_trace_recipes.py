"""What other programs do with trace files: the queries of the handbook, and the pipeline."""

import re
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from msgspec import Struct

from smtpproxy.trace import records
from smtpproxy.trace.reader import LINE_BYTES
from smtpproxy.trace.recorder import TraceRecorder
from smtpproxy.trace.rotating_files import RotatingFiles
from tests.support.observed_session import Later, Watched

DEPLOY = Path(__file__).parents[2] / "deploy"
QUERIES = re.findall(r"```sql\n(.*?)```", (DEPLOY / "tracing.md").read_text(), re.DOTALL)
PIPELINE: dict[str, Any] = tomllib.loads((DEPLOY / "vector" / "vector.toml").read_text())
COMPONENTS = PIPELINE["sources"] | PIPELINE["transforms"] | PIPELINE["sinks"]
KINDS = {each.__struct_config__.tag: each for each in typing.get_args(records.Record)}


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Return a directory with three sessions, of which one message is refused."""
    trace = TraceRecorder(RotatingFiles(tmp_path / "trace", 0, 1 << 20, 5), Later())
    for reply in ("250 2.0.0 queued", "250 2.0.0 queued", "550 5.7.1 spam"):
        session = Watched(trace)
        session.sends("EHLO x")
        session.says("250-mx\r\n250 SIZE")
        session.sends("MAIL FROM:<a@x.example>", "RCPT TO:<b@y>", "DATA")
        session.says("250 a", "250 b", "354 go")
        session.sends("text", ".")
        session.now += 2
        session.says(reply)
        session.close()
    trace.close()
    return tmp_path / "trace"


def answer(query: str, directory: Path) -> list[dict[str, Any]]:
    """Run a query without any extension that is not built in."""
    settings = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
    with duckdb.connect(config=settings) as connection:
        result = connection.execute(query.replace("/var/tmp/smtp", str(directory)))
        names = [column[0] for column in result.description or ()]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def test_the_query_of_the_mtas_time_finds_the_slowest_session(recorded: Path) -> None:
    slowest, *others = answer(QUERIES[0], recorded)
    assert (slowest["verb"], slowest["replies"]) == ("end_of_data", 3)
    assert [slowest["p50"], slowest["p95"]] == pytest.approx([2.25, 2.25], abs=1e-3)
    assert slowest["slowest"]
    assert {each["verb"] for each in others} == {"EHLO", "MAIL", "RCPT", "DATA"}


def test_the_query_of_domains_counts_their_messages(recorded: Path) -> None:
    assert answer(QUERIES[1], recorded) == [
        {
            "domain": "x.example",
            "outcome": outcome,
            "code": code,
            "messages": count,
            "bytes": 6 * count,
        }
        for outcome, code, count in (("relayed", "250", 2), ("refused", "550", 1))
    ]


def test_the_query_of_hours_sums_what_was_saved(recorded: Path) -> None:
    found = answer(QUERIES[2], recorded)
    totals = {
        name: sum(hour[name] for hour in found)  # a test may run at the end of an hour
        for name in ("sessions", "messages", "round_trips", "seconds")
    }
    assert totals == {
        "sessions": 3,
        "messages": 2,
        "round_trips": 6,
        "seconds": pytest.approx(6 * 0.025),
    }


def test_there_are_no_other_queries() -> None:
    assert len(QUERIES) == 3


def test_each_part_of_the_pipeline_gets_its_events_from_another() -> None:
    given = set(PIPELINE["sources"]) | set(PIPELINE["transforms"])
    taken = {name for each in COMPONENTS.values() for name in each.get("inputs", ())}
    assert taken == given
    assert not set(PIPELINE["sources"]) & set(PIPELINE["transforms"])


def _kind_of(name: str) -> type[Struct] | None:
    """Return the kind of record that a part of the pipeline gets, by the filter before it."""
    part = COMPONENTS[name]
    if chosen := re.search(r'\.what == "(\w+)"', part.get("condition", "")):
        return KINDS[chosen[1]]
    (before,) = part.get("inputs") or (None,)
    return None if before is None else _kind_of(before)


def _fields_named() -> Iterator[tuple[str, str]]:
    for name, part in COMPONENTS.items():
        for text in (part.get("source", ""), part.get("condition", "")):
            for field in re.findall(r"(?<![\w.)])\.([a-z_]\w*(?:\.\w+)?)", text):
                if _kind_of(name) is not None:
                    yield name, field


@pytest.mark.parametrize(("part", "field"), sorted(set(_fields_named())))
def test_the_pipeline_names_fields_that_records_have(part: str, field: str) -> None:
    kind = _kind_of(part)
    assert kind is not None
    name, _, inner = field.partition(".")
    assert name in (*kind.__struct_fields__, "what")
    if inner:
        assert name == "transactions"
        assert inner in records.Transaction.__struct_fields__


def test_the_pipeline_names_enough_fields() -> None:
    named = {field for _, field in _fields_named()}
    assert {"what", "transactions", "transactions.queue_id", "sent", "replied", "verb"} <= named


def test_the_metric_is_made_of_fields_that_were_made_before() -> None:
    (metric,) = PIPELINE["transforms"]["reply_seconds"]["metrics"]
    (before,) = PIPELINE["transforms"]["reply_seconds"]["inputs"]
    made = re.findall(r'^ *"(\w+)":', PIPELINE["transforms"][before]["source"], re.MULTILINE)
    assert {metric["field"], *re.findall(r"{{(\w+)}}", metric["tags"]["verb"])} <= set(made)


def test_the_pipeline_reads_whole_records() -> None:
    assert PIPELINE["sources"]["trace_files"]["max_line_bytes"] == LINE_BYTES
    assert all(f"maximum_object_size = {LINE_BYTES}" in query for query in QUERIES)
