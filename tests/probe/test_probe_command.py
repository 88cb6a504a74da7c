"""The command `smtpproxy probe`: its output, its errors, and its exit code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from smtpproxy import cli
from tests.probe.server import Server, Session


def probe(*arguments: str) -> Result:
    result = CliRunner().invoke(cli.main, ["probe", *arguments], prog_name="smtpproxy")
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def test_the_report_and_the_settings() -> None:
    with Server() as server:
        result = probe(str(server.address))
    assert (result.exit_code, result.stderr) == (0, "")
    assert "It lacks PIPELINING, but loses no commands" in result.stdout
    assert f'servers = ["{server.address}"]' in result.stdout


def test_settings_only_prints_a_valid_file(tmp_path: Path) -> None:
    with Server() as server:
        result = probe("--settings-only", str(server.address))
    file = tmp_path / "p.toml"
    file.write_text(result.stdout)
    checked = CliRunner().invoke(cli.main, ["check", "-c", str(file)])
    assert (checked.exit_code, checked.stderr) == (0, "")
    assert "no problems found" in checked.stdout


def test_the_findings_as_json(tmp_path: Path) -> None:
    with Server() as server:
        result = probe("--json", str(server.address))
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert (found["address"], found["refusal"]) == (str(server.address), "")
    assert (found["offers_pipelining"], found["loses_groups"]) == (False, False)
    assert found["greeting"]["code"] == 220
    assert {each["end"] for each in found["groups"]} == {"answered"}
    file = tmp_path / "p.toml"
    file.write_text(found["settings"])
    assert CliRunner().invoke(cli.main, ["check", str(file)]).exit_code == 0


def test_a_refusal_as_json_has_no_settings() -> None:
    with Server(greeting=b"554 5.7.1 \x1b[2Jgo away\r\n") as server:
        result = probe("--json", str(server.address))
    found = json.loads(result.stdout)
    assert (result.exit_code, found["settings"]) == (1, None)
    assert found["greeting"]["text"] == ["5.7.1 \\x1b[2Jgo away"]
    assert "\x1b" not in result.stdout


def test_its_options_are_sent_to_the_server() -> None:
    with Server() as server:
        options = ("--helo", "[192.0.2.1]", "--from", "me@here.example", "--relay-test", "a@b.c")
        result = probe(*options, str(server.address))
    assert result.exit_code == 0
    assert b"EHLO [192.0.2.1]\r\n" in server.heard
    assert b"MAIL FROM:<me@here.example>\r\n" in server.heard
    assert b"RCPT TO:<a@b.c>\r\n" in server.heard
    assert "would be relayed for this machine" in result.stdout


def test_an_unreachable_server_is_one_line_of_error() -> None:
    result = probe("127.0.0.1:1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "smtpproxy: 127.0.0.1:1: it can't be reached: connection refused\n"


def test_a_failed_implicit_tls_handshake_is_reported() -> None:
    with Server() as server:
        result = probe("--implicit-tls", str(server.address))
    assert (result.exit_code, result.stdout) == (1, "")
    assert ": the TLS handshake failed: " in result.stderr


@pytest.mark.parametrize("settings_only", [False, True])
def test_a_refusal_shows_the_findings_and_no_settings(settings_only: bool) -> None:
    with Server({b"EHLO": b"550 go away\r\n"}) as server:
        options = ("--settings-only",) if settings_only else ()
        result = probe(*options, "--helo", "me.example", str(server.address))
    assert result.exit_code == 1
    assert ("550 go away" in result.stdout) is not settings_only
    assert "[backends" not in result.stdout
    assert result.stderr == (
        f"smtpproxy: {server.address}: EHLO is refused; try another name than me.example "
        "with --helo\n"
    )


def test_hostile_bytes_are_escaped_for_the_terminal() -> None:
    def nasty(session: Session) -> None:
        session.say(b"\x1b]0;owned\x07\r\n")
        session.read()

    with Server(script=nasty) as server:
        result = probe(str(server.address))
    assert result.exit_code == 1
    assert "\\x1b]0;owned\\x07" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing argument 'ADDR'"),
        (["10.0.0.5"], "'10.0.0.5' has no port; write, for example, \"10.0.0.5:25\""),
        (["original"], "needs the address of a server"),
        (["fd:smtp"], "is a listening socket"),
        (["unix:x"], "needs the whole path"),
        (["unix:/\udcff"], "is not UTF-8"),
        (["h:25", "--timeout", "0"], "--timeout"),
        (["h:25", "--timeout", "nan"], "'nan' is not a number of seconds"),
        (["h:25", "--helo", "a b"], "'a b' is not a name"),
        (["h:25", "--helo", "a\r\nDATA"], "is not a name"),
        (["h:25", "--from", "a@b>\r\nDATA"], "is not an address"),
        (["h:25", "--relay-test", "<a@b>"], "'<a@b>' is not an address"),
        (["h:25", "--relay-test", "a@b\n"], "is not an address"),
    ],
)
def test_a_mistake_is_a_usage_error(arguments: list[str], said: str) -> None:
    result = probe(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


def test_check_and_run_do_not_load_it() -> None:
    code = "import sys, smtpproxy.cli; print([m for m in sys.modules if 'probe' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
