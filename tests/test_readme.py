"""What the README tells of settings and events: all of them, and the defaults that they have."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import smtpproxy
from smtpproxy.config.loader import load
from smtpproxy.config.schema import (
    AdminSettings,
    BackendSettings,
    LimitSettings,
    ListenerSettings,
    LogSettings,
    Settings,
    TimeoutSettings,
    TraceSettings,
)

README = (Path(__file__).parent.parent / "README.md").read_text()
EXAMPLE = re.search(r"```toml\n(.*?)```", README, re.DOTALL)[1]
TABLES = {
    "listener": ListenerSettings,
    "backends.*": BackendSettings,
    "limits": LimitSettings,
    "timeouts": TimeoutSettings,
    "log": LogSettings,
    "trace": TraceSettings,
    "admin": AdminSettings,
}


def rows() -> Iterator[tuple[str, str, str]]:
    """Yield table, key and default (as TOML, empty if there is none to tell) of each setting."""
    for keys, defaults in re.findall(r"^\| (`[a-z]+\..*?) \|(.*?)\|", README, re.MULTILINE):
        names = re.findall(r"`([^`]+)`", keys)
        table, _, first = names[0].rpartition(".")
        told = [each.strip(" `") for each in defaults.split(",")]
        assert len(told) in (1, len(names)), keys
        for name, default in zip([first, *names[1:]], told + [""] * len(names), strict=False):
            yield table, name.rpartition(".")[2], "" if default == "loopback" else default


@pytest.mark.parametrize("table", TABLES)
def test_each_setting_is_told(table: str) -> None:
    known = {field.name for field in msgspec.structs.fields(TABLES[table])}
    told = {key for name, key, _ in rows() if name == table}
    assert told <= known
    written = set(re.findall(r"^(\w+) =", EXAMPLE, re.MULTILINE))
    mentioned = set(re.findall(rf"`\[?{re.escape(table)}\.(\w+)", README))
    assert known - told - written - mentioned == set()


def test_the_defaults_are_those_of_the_program(tmp_path: Path) -> None:
    """Written into a file, the defaults in the README's table change nothing."""
    begin = {"listener": '[[listener]]\naddress = "[::1]:25"\n', "backends.*": "[backends.old]\n"}
    texts = {table: begin.get(table, f"[{table}]\n") for table in TABLES}
    texts["backends.*"] += 'servers = ["10.0.0.5:25"]\n'
    (tmp_path / "short").write_text(texts["listener"] + texts["backends.*"])
    told = 0
    for table, key, default in rows():
        if default:
            texts[table] += f"{key} = {default}\n"
            told += 1
    (tmp_path / "long").write_text("".join(texts.values()))
    assert load(tmp_path / "long") == load(tmp_path / "short")
    assert told > 50


def test_the_example_has_no_problem(tmp_path: Path) -> None:
    (tmp_path / "example").write_text(EXAMPLE)
    assert isinstance(load(tmp_path / "example"), Settings)


def events() -> set[str]:
    """Return what the program logs, by its source."""
    found = set()
    for path in Path(smtpproxy.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and node.args):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in {"debug", "info", "warning", "error", "noted", "tell", "_session"}:
                for each in ast.walk(node.args[0]):
                    if isinstance(each, ast.Constant) and re.fullmatch("[a-z_]+", str(each.value)):
                        found.add(each.value)
    return found


def test_each_event_is_told() -> None:
    named = {"message_relayed", "message_refused", "message_abandoned"}
    assert {"listening", "client_violation", "worker_lost", "tls_failed"} <= events()
    assert [each for each in sorted(events() | named) if f"`{each}`" not in README] == []
