"""The README's first message: its two commands, and the log line that it promises."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.interop.peers import opensmtpd
from tests.support.processes import Process, Workplace, eventually, free_port
from tests.support.programs import command

README = (Path(__file__).parents[2] / "README.md").read_text()
PART = README.split("\n## First message\n")[1].split("\n## ")[0]
RUN, SEND = re.findall(r"^    ((?:smtpproxy|swaks) .*)$", PART, re.MULTILINE)
SHOWN: dict[str, Any] = json.loads(re.search(r"^    \{.*?\}$", PART, re.MULTILINE | re.DOTALL)[0])


def message_in(log: str) -> dict[str, Any] | None:
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return next((each for each in lines if each["event"] == "message_relayed"), None)


def test_the_commands_give_the_log_line() -> None:
    port = free_port()
    with opensmtpd() as mta, Workplace("first") as work:
        run = RUN.replace("2525", str(port)).replace("10.0.0.5:25", f"127.0.0.1:{mta.port}")
        send = SEND.replace("2525", str(port)).replace("@old.example", "@rcpt.example")
        argv = [sys.executable, "-m", *shlex.split(run)]
        with Process(argv, work.path / "log") as proxy:
            proxy.await_greeting(port)
            argv = [command("swaks", "swaks"), *shlex.split(send)[1:]]
            subprocess.run(argv, check=True, timeout=60, stdout=subprocess.DEVNULL)
            logged = eventually(lambda: message_in(proxy.printed()), "the log line")
    assert list(logged) == list(SHOWN)
    assert [type(each) for each in logged.values()] == [type(each) for each in SHOWN.values()]
    same = ("level", "event", "client_ip", "listener", "backend", "sender", "groups")
    assert {key: logged[key] for key in same} == {key: SHOWN[key] for key in same}
    assert [each.partition("@")[0] for each in logged["recipients"]] == ["ann", "bob"]
