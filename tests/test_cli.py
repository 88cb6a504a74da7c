"""The command line: what each command says, where it says it, and its exit code."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from smtpproxy import cli, is_compiled
from smtpproxy.config.address import Address
from smtpproxy.config.fault_flag import Faults
from smtpproxy.config.schema import Settings
from smtpproxy.demo import demo_run
from smtpproxy.demo.legacy import DEFAULT_FAILING, FAILINGS
from smtpproxy.supervisor import supervisor

GOOD = """\
[listeners.smtp]
address = "127.0.0.1:2525"
[backends.old]
servers = ["10.0.0.5:25", "[fe80::5]:25"]
"""


def invoke(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(cli.main, list(map(str, arguments)), prog_name="smtpproxy")
    # Nothing but a chosen exit may end a command.
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "p.toml"
    path.write_text(GOOD)
    return path


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What `run` would have run."""
    ran: list[Settings] = []

    def main(
        settings: Settings, read: Callable[[], Settings], control: Address | None, faults: Faults
    ) -> int:
        assert faults.flags == []
        assert control is None
        ran.append(settings)
        assert read() == settings
        return 0

    monkeypatch.setattr(supervisor, "main", main)
    return ran


COMMANDS = [
    *("", "run", "check", "demo", "example", "health", "probe", "status"),
    *("trace", "trace list", "trace stats", "trace show", "trace follow", "trace export"),
    *("trace replay", "trace watch"),
]


def parent() -> click.Context:
    """Return a context of the program itself, with its options for help."""
    return click.Context(cli.main, **cli.main.context_settings)


def found(name: str) -> click.Command:
    """Return a command by its words."""
    command: click.Command | None = cli.main
    for word in name.split():
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), word)
    assert command is not None
    return command


def _numeric_options(command: click.Command, name: str) -> Iterator[tuple[str, str, click.Option]]:
    """Yield each numeric option of a command and its subcommands: command, flag, option."""
    if isinstance(command, click.Group):
        for each in command.list_commands(click.Context(command)):
            yield from _numeric_options(found(f"{name} {each}".strip()), f"{name} {each}".strip())
    for option in command.params:
        numbers = (type(click.INT), type(click.FLOAT))
        if isinstance(option, click.Option) and isinstance(option.type, numbers):
            yield name, option.opts[-1], option


NUMERIC = [(name, flag) for name, flag, _ in _numeric_options(cli.main, "")]


def _parsed(name: str, flag: str, value: str) -> str:
    """Return the error of the parser about this option; empty if there is none."""
    try:
        found(name).make_context(name, [flag, value], parent=parent())
    except click.MissingParameter:
        return ""
    except click.BadParameter as error:
        return error.format_message()
    return ""


class TestNumbers:
    def test_they_are_found(self) -> None:
        assert ("run", "--workers") in NUMERIC
        assert ("trace list", "--code") in NUMERIC
        assert ("probe", "--timeout") in NUMERIC

    @pytest.mark.parametrize("value", ["x", "1.5x", "-1", "", "1e99", "nan"])
    @pytest.mark.parametrize(("name", "flag"), NUMERIC)
    def test_error_gives_the_value_what_is_wanted_and_an_example(
        self, name: str, flag: str, value: str
    ) -> None:
        error = _parsed(name, flag, value)
        assert flag in error
        assert f"{value!r} is not a " in error or f"{float(value)!r} is not a" in error
        example = error.rpartition("such as ")[2].rstrip(".")
        assert _parsed(name, flag, example) == ""


class TestHelp:
    def test_the_version_names_what_it_runs_on(self) -> None:
        result = invoke("--version")
        assert result.output.startswith("smtpproxy 0.")
        assert ", Python 3." in result.output
        assert ", uvloop 0." in result.output
        assert ", OpenSSL " in result.output
        assert result.output.endswith(", compiled\n" if is_compiled() else ", not compiled\n")

    @pytest.mark.parametrize("flag", ["-h", "--help"])
    @pytest.mark.parametrize("command", COMMANDS)
    def test_is_everywhere(self, command: str, flag: str) -> None:
        result = invoke(*command.split(), flag)
        assert result.exit_code == 0
        assert "smtpproxy" in result.output

    @pytest.mark.parametrize("flag", ["-h", "--help"])
    def test_of_health_needs_no_other_command(self, flag: str) -> None:
        """`smtpproxy.__main__` runs it without the program's other options."""
        argv = [sys.executable, "-m", "smtpproxy", "health", flag]
        shown = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout
        assert shown.split() == invoke("health", flag).output.split()

    @pytest.mark.parametrize("columns", [60, 80])
    @pytest.mark.parametrize("group", ["", "trace"])
    def test_of_a_group_says_what_each_command_does_in_whole(
        self, group: str, columns: int
    ) -> None:
        arguments = [*group.split(), "-h"]
        shown = CliRunner().invoke(cli.main, arguments, terminal_width=columns).output
        _, commands = shown.split("Commands:")
        assert "..." not in commands

    def test_every_command_is_tested(self) -> None:
        groups = {"": cli.main, "trace ": found("trace")}
        for prefix, group in groups.items():
            assert isinstance(group, click.Group)
            names = group.list_commands(click.Context(group))
            assert [name for name in names if prefix + name not in COMMANDS] == []

    @pytest.mark.parametrize("command", COMMANDS)
    def test_says_what_each_flag_is_for(self, command: str) -> None:
        flags = [each for each in found(command).params if isinstance(each, click.Option)]
        assert [each.name for each in flags if not each.help] == []

    def test_its_examples_can_be_pasted(self, tmp_path: Path) -> None:
        """Each line of an example is a command that the parser takes."""
        pasted = 0
        for name in COMMANDS[1:]:
            begin = ["smtpproxy", *name.split()]
            for line in invoke(*name.split(), "-h").output.splitlines():
                text = re.split(r"&&|>|#|\|", line)[0].replace("/var/log/smtpproxy", str(tmp_path))
                words = shlex.split(text) if text.split()[: len(begin)] == begin else []
                first, given = words[: len(begin)], words[len(begin) :]
                if first == begin:
                    found(name).make_context(name, given, parent=parent())
                    pasted += 1
        assert pasted >= 18


class TestRun:
    def test_hands_on_what_the_flags_say(self, ran: list[Settings]) -> None:
        result = invoke(
            "run", "-l", "127.0.0.1:0", "--listen", "[::1]:0", "-b", "h:25", "--backend", "i:25",
            "--log-format", "json", "--log-level", "debug", "-w", "3",
        )  # fmt: skip
        assert (result.exit_code, result.output) == (0, "")
        (settings,) = ran
        assert [str(each.address) for each in settings.listeners.values()] == [
            "127.0.0.1:0",
            "[::1]:0",
        ]
        assert (settings.log.format, settings.log.level) == ("json", "debug")
        assert settings.workers == 3

    def test_flags_override_the_file(self, file: Path, ran: list[Settings]) -> None:
        assert invoke("run", "-c", file, "-l", "[::1]:0").exit_code == 0
        assert [str(each.address) for each in ran[0].listeners.values()] == ["[::1]:0"]
        assert list(ran[0].backends) == ["old"]

    def test_flags_bring_what_the_file_lacks(self, file: Path, ran: list[Settings]) -> None:
        file.write_text("[limits]\nconsecutive_errors = 7\n")
        assert invoke("run", "-c", file, "-l", "[::1]:0", "-b", "h:25").exit_code == 0
        assert ran[0].limits.consecutive_errors == 7

    @pytest.mark.parametrize("given", [[], ["-l", "[::1]:0"], ["-b", "h:25"]])
    def test_too_little_is_a_usage_error_with_an_example(
        self, given: list[str], ran: list[Settings]
    ) -> None:
        result = invoke("run", *given)
        assert result.exit_code == 2
        assert "smtpproxy run -l 127.0.0.1:2525 -b 127.0.0.1:25" in result.stderr
        assert not ran

    def test_a_bad_address_names_its_flag(self, ran: list[Settings]) -> None:
        result = invoke("run", "-l", "::1:2525", "-b", "h")
        assert result.exit_code != 0
        assert '-l: "::1:2525"' in result.stderr
        assert '-b: "h"' in result.stderr
        assert not ran

    def test_an_impossible_number_of_workers(self, ran: list[Settings]) -> None:
        result = invoke("run", "-l", "[::1]:0", "-b", "h:25", "-w", "65")
        assert result.exit_code == 1
        assert "-w: must be a whole number from 0 to 64, not 65" in result.stderr
        assert not ran

    def test_a_bad_file_has_lines(self, file: Path, ran: list[Settings]) -> None:
        file.write_text(GOOD + "x = 1\n")
        result = invoke("run", "-c", file)
        assert result.exit_code == 1
        assert f"{file}:5: backends.old.x: is not a known setting" in result.stderr
        assert not ran

    def test_the_exit_code_is_the_proxys(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(supervisor, "main", lambda *_: 1)
        assert invoke("run", "-l", "[::1]:0", "-b", "h:25").exit_code == 1

    def test_itself_prints_nothing_beside_the_log(self, ran: list[Settings]) -> None:
        result = invoke("run", "-l", "0.0.0.0:0", "-b", "h:25")
        assert (result.stdout, result.stderr) == ("", "")
        assert ran


class TestFaults:
    RUN = ("run", "-l", "127.0.0.1:0", "-b", "h:25")

    @pytest.fixture
    def faults(self, monkeypatch: pytest.MonkeyPatch) -> list[Faults]:
        found: list[Faults] = []
        monkeypatch.setattr(supervisor, "main", lambda *each: found.append(each[3]) or 0)
        return found

    def test_are_handed_on_with_a_warning(self, faults: list[Faults]) -> None:
        result = invoke(*self.RUN, "--fault", "RCPT 450 10%", "--fault", "DATA close")
        assert result.exit_code == 0
        assert [each.flags for each in faults] == [["RCPT 450 10%", "DATA close"]]
        assert result.stderr.splitlines() == [
            "smtpproxy: warning: injects faults into sessions: --fault 'RCPT 450 10%'",
            "smtpproxy: warning: injects faults into sessions: --fault 'DATA close'",
        ]

    def test_have_a_seed_of_their_own_or_a_given_one(self, faults: list[Faults]) -> None:
        for flags in ([], [], ["--fault-seed", "7"]):
            invoke(*self.RUN, "--fault", "RCPT 450", *flags)
        seeds = [each.seed for each in faults]
        assert seeds[0] != seeds[1]
        assert seeds[2] == 7

    def test_a_bad_one_is_shown_with_its_place_and_an_example(self, faults: list[Faults]) -> None:
        result = invoke(*self.RUN, "--fault", "RCPT 250", "--fault", "X close")
        assert result.exit_code == 1
        assert [line.split(":")[1] for line in result.stderr.splitlines()] == [" --fault"] * 2
        assert 'word 2, "250", is no reply code' in result.stderr
        assert "for example: --fault 'RCPT 450 10% recipient=*@y.example'" in result.stderr
        assert not faults

    def test_a_seed_without_a_fault_is_a_mistake(self, faults: list[Faults]) -> None:
        result = invoke(*self.RUN, "--fault-seed", "7")
        assert (result.exit_code, faults) == (2, [])
        assert "--fault-seed goes with --fault" in result.stderr


class TestRunByEnvironment:
    def test_every_option_has_a_variable_that_help_names(self) -> None:
        """But faults, which only a flag can bring."""
        options = [each for each in found("run").params if isinstance(each, click.Option)]
        flags = [each for each in options if not each.opts[-1].startswith("--fault")]
        long = [each.opts[-1].removeprefix("--") for each in flags]
        named = [f"SMTPPROXY_{each.upper().replace('-', '_')}" for each in long]
        assert [each.envvar for each in flags] == named
        reported = " ".join(invoke("run", "-h").output.split())
        assert [each for each in named if not re.search(rf"\[env var: {each}[];]", reported)] == []

    def test_lists_are_separated_by_spaces(
        self, ran: list[Settings], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as environment:
            environment.setenv("SMTPPROXY_LISTEN", "127.0.0.1:0 [::1]:0")
            environment.setenv("SMTPPROXY_BACKEND", "h:25 i:25")
            environment.setenv("SMTPPROXY_WORKERS", "3")
            environment.setenv("SMTPPROXY_LOG_FORMAT", "json")
            environment.setenv("SMTPPROXY_LOG_LEVEL", "")  # set and empty is not set
            assert invoke("run").exit_code == 0
        by_flags = ["-l", "127.0.0.1:0", "-l", "[::1]:0", "-b", "h:25", "-b", "i:25", "-w", "3"]
        assert invoke("run", *by_flags, "--log-format", "json").exit_code == 0
        assert ran[0] == ran[1]

    def test_the_file_may_be_named_there_and_flags_override(
        self, file: Path, ran: list[Settings], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SMTPPROXY_CONFIG", str(file))
        monkeypatch.setenv("SMTPPROXY_WORKERS", "3")
        assert invoke("run", "-w", "5").exit_code == 0
        assert (list(ran[0].backends), ran[0].workers) == (["old"], 5)

    def test_a_bad_value_names_its_variable(
        self, ran: list[Settings], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SMTPPROXY_LISTEN", "[::1]:0 ::1:2525")
        monkeypatch.setenv("SMTPPROXY_ADMIN", "0.0.0.0:8025")
        result = invoke("run", "-b", "h")
        assert result.exit_code == 1
        assert 'smtpproxy: SMTPPROXY_LISTEN: "::1:2525"' in result.stderr
        assert "smtpproxy: SMTPPROXY_ADMIN: admin.token is missing" in result.stderr
        assert 'smtpproxy: -b: "h"' in result.stderr
        assert not ran


class TestCheck:
    def test_shows_what_would_run(self, file: Path) -> None:
        result = invoke("check", "-c", file)
        assert (result.exit_code, result.stderr) == (0, "")
        for word in ("127.0.0.1:2525", "old", "10.0.0.5:25", "[fe80::5]:25", "safe", "no problems"):
            assert word in result.stdout

    def test_a_narrow_terminal_shows_fewer_columns_and_whole_words(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "60")
        lines = invoke("check", "-c", file).stdout.splitlines()
        assert max(map(len, lines[:-1])) <= 60
        assert lines[0].split()[:5] == ["listener", "address", "tls", "backend", "servers"]
        assert "sync" not in lines[0]
        assert "10.0.0.5:25," in lines[1]
        assert "…" not in "".join(lines)

    def test_every_problem_is_on_standard_error_with_its_place(self, file: Path) -> None:
        file.write_text('hostnam = "x"\n' + GOOD + "guard_data = 3\n")
        result = invoke("check", "-c", file)
        assert result.exit_code == 1
        assert result.stdout == ""
        first, second = result.stderr.splitlines()
        assert f'{file}:1: hostnam: is not a known setting; did you mean "hostname"?' in first
        assert f"{file}:6: backends.old.guard_data: must be true or false, not 3" in second

    def test_an_open_door_is_a_warning_not_a_problem(self, file: Path) -> None:
        file.write_text(GOOD.replace("127.0.0.1:2525", "[::]:25"))
        result = invoke("check", "-c", file)
        assert result.exit_code == 0
        assert "warning: listener smtp" in result.stderr

    def test_a_missing_file(self, tmp_path: Path) -> None:
        result = invoke("check", "-c", tmp_path / "gone.toml")
        assert result.exit_code == 1
        assert "gone.toml: cannot be read: no such file" in result.stderr

    def test_needs_one_file(self, file: Path) -> None:
        assert invoke("check").exit_code == 2
        assert invoke("check", file, "-c", file).exit_code == 2

    def test_the_file_needs_no_option(self, file: Path) -> None:
        result = invoke("check", file)
        assert (result.exit_code, f"{file}: no problems found" in result.stdout) == (0, True)

    def test_problems_and_warnings_as_json(self, file: Path) -> None:
        file.write_text(GOOD.replace("127.0.0.1:2525", "[::]:25"))
        result = invoke("check", "--json", file)
        found = json.loads(result.stdout)
        assert (result.exit_code, result.stderr, found["problems"]) == (0, "", [])
        assert "listener smtp serves clients of other machines" in found["warnings"][0]
        file.write_text('hostnam = "x"\n' + GOOD)
        result = invoke("check", "--json", file)
        (problem,) = json.loads(result.stdout)["problems"]
        assert (result.exit_code, result.stderr) == (1, "")
        assert (problem["file"], problem["line"], problem["key"]) == (str(file), 1, "hostnam")
        assert "did you mean" in problem["text"]


class TestDemo:
    def test_hands_on_its_options(self, monkeypatch: pytest.MonkeyPatch) -> None:
        played: list[dict[str, object]] = []
        monkeypatch.setattr(demo_run, "main", lambda **options: played.append(options) or 1)
        assert invoke("demo").exit_code == 1
        invoke(
            "demo", "--rtt", "0", "--recipients", "9", "--serve", "--legacy", "helo-only",
            "--port", "2525", "--admin", "127.0.0.1:8025",
        )  # fmt: skip
        assert played == [
            {
                "rtt": 0.1,
                "recipients": 3,
                "serve": False,
                "failing": DEFAULT_FAILING,
                "port": 0,
                "admin": "",
            },
            {
                "rtt": 0.0,
                "recipients": 9,
                "serve": True,
                "failing": "helo-only",
                "port": 2525,
                "admin": "127.0.0.1:8025",
            },
        ]

    def test_an_unknown_failing_shows_the_known(self) -> None:
        result = invoke("demo", "--legacy", "x")
        assert result.exit_code == 2
        assert all(name in result.stderr for name in FAILINGS)

    @pytest.mark.parametrize("option", [["--port", "2525"], ["--admin", "127.0.0.1:8025"]])
    def test_what_goes_with_serve_alone(self, option: list[str]) -> None:
        assert "go with --serve" in invoke("demo", *option).stderr

    @pytest.mark.parametrize("address", ["8025", "0.0.0.0:8025"])
    def test_a_bad_address_of_the_page(self, address: str) -> None:
        result = invoke("demo", "--serve", "--admin", address)
        assert (result.exit_code, "smtpproxy: --admin: " in result.stderr) == (1, True)

    @pytest.mark.parametrize(
        "wrong", [["--rtt", "-1"], ["--rtt", "nan"], ["--rtt", "x"], ["--recipients", "0"]]
    )
    def test_impossible_numbers(self, wrong: list[str]) -> None:
        assert invoke("demo", *wrong).exit_code == 2


class TestTheRealProgram:
    def test_check_by_python_m(self, file: Path) -> None:
        done = smtpproxy("check", "-c", str(file))
        assert done.returncode == 0
        assert "no problems found" in done.stdout

    def test_a_mistake_shows_no_traceback(self, file: Path) -> None:
        file.write_bytes(b"\xff")
        done = smtpproxy("check", "-c", str(file))
        assert done.returncode == 1
        assert done.stderr.endswith(":1: byte 0xff is not UTF-8; save the file as UTF-8\n")

    def test_run_does_not_load_the_demonstration(self) -> None:
        code = "import sys, smtpproxy.cli; print([m for m in sys.modules if 'smtpproxy.demo' in m])"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout == "[]\n"

    def test_run_logs_its_addresses_and_stops_on_a_signal(self) -> None:
        command = [*SMTPPROXY, "run", "-l", "127.0.0.1:0", "-b", "127.0.0.1:1"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            listening = json.loads(process.stderr.readline())
            os.kill(process.pid, signal.SIGTERM)
            process.communicate(timeout=20)
        assert listening["event"] == "listening"
        assert not listening["address"].endswith(":0")
        assert process.returncode == 0


SMTPPROXY = [sys.executable, "-m", "smtpproxy"]


def smtpproxy(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SMTPPROXY, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
