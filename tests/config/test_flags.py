"""Flags: how they override a settings file, and how invalid ones are reported."""

import os
from pathlib import Path

import pytest

from smtpproxy.config.address import Address
from smtpproxy.config.decoding import ConfigError
from smtpproxy.config.loader import from_flags, load
from smtpproxy.config.schema import ListenerSettings, Settings
from tests.support.settings_file import GOOD, write


def flag_problems(settings: Settings | None, listen: list[str], backend: list[str]) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        from_flags(settings, listen, backend)
    return [str(problem) for problem in raised.value.problems]


def text_of(listen: str) -> str:
    return f'[listeners.a]\naddress = "{listen}"\n[backends.b]\nservers = ["h:1"]\n'


class TestFlags:
    def test_flags_alone_are_enough(self) -> None:
        settings = from_flags(None, ["127.0.0.1:0", "[::1]:25"], ["a.example:25", "10.0.0.5:25"])
        assert [str(each.address) for each in settings.listeners.values()] == [
            "127.0.0.1:0",
            "[::1]:25",
        ]
        (backend,) = settings.backends.values()
        assert list(map(str, backend.servers)) == ["a.example:25", "10.0.0.5:25"]
        assert {each.backend for each in settings.listeners.values()} == set(settings.backends)

    def test_flags_replace_settings_of_the_file_and_keep_the_rest(self, tmp_path: Path) -> None:
        text = GOOD + '[limits]\ncommand_line = 600\n[log]\nlevel = "error"\nformat = "json"\n'
        file = load(write(tmp_path, text))
        settings = from_flags(file, ["[::1]:26"], [], log_level="debug")
        assert settings.listeners == {
            "listener-1": ListenerSettings(address=Address("::1", 26), backend="old")
        }
        assert settings.backends == file.backends
        assert (settings.limits.command_line, settings.log.level, settings.log.format) == (
            600,
            "debug",
            "json",
        )
        settings = from_flags(file, [], ["10.9.9.9:25"], log_format="console")
        (name,) = settings.backends
        assert name == settings.listeners["smtp"].backend == "backend-1"
        assert str(settings.backends[name].servers[0]) == "10.9.9.9:25"
        assert settings.log.format == "console"

    def test_missing_flags_are_reported(self) -> None:
        listen, backend = flag_problems(None, [], [])
        assert listen.startswith("-l: is missing")
        assert backend.startswith("-b: is missing")

    def test_every_bad_flag_is_reported(self) -> None:
        reported = flag_problems(None, ["x", "[::1]:1", "[::1]:1"], ["h:0", "10.0.0.5:25"])
        assert sorted(each.split(":")[0] for each in reported) == ["-b", "-l", "-l"]

    def test_bad_flags_of_the_log_are_reported(self) -> None:
        with pytest.raises(
            ConfigError, match=r"--log-format: must be .*\n--log-level: must be"
        ) as e:
            from_flags(None, ["[::1]:1"], ["h:1"], log_format="xml", log_level="loud")
        assert len(e.value.problems) == 2

    def test_a_listener_cannot_choose_between_backends(self, tmp_path: Path) -> None:
        text = '[backends.a]\nservers = ["h:1"]\n[backends.b]\nservers = ["h:2"]\n'
        file = load(write(tmp_path, text), need_listener=False)
        (reported,) = flag_problems(file, ["[::1]:1"], [])
        assert 'cannot choose between the backends "a", "b"; give -b too' in reported

    def test_contradictions_with_flags_are_found(self, tmp_path: Path) -> None:
        text = '[backends.a]\nservers = ["h:1"]\nidentity = "proxy-v2"\n'
        file = load(write(tmp_path, text), need_listener=False)
        (reported,) = flag_problems(file, ["unix:/run/s"], [])
        assert reported.startswith("-l: is a Unix socket, whose clients have no addresses")
        (reported,) = flag_problems(load(write(tmp_path, GOOD)), [], ["original"])
        assert reported.startswith("listeners.smtp.transparent: must be true")
        alone, transparent = flag_problems(None, ["[::1]:1"], ["h:1", "original"])
        assert alone == '-b: "original" must be the only server'
        assert transparent.startswith("-l: listeners.listener-1.transparent must be true")


class TestAdminAndTraceFlags:
    def test_flags_override_the_file(self, tmp_path: Path) -> None:
        settings = from_flags(
            load(write(tmp_path, GOOD + '[trace]\nwhen = "off"\ncontent = "headers"')),
            [],
            [],
            trace=tmp_path,
            admin="127.0.0.1:8025",
        )
        assert settings.trace.directory == str(tmp_path)
        assert (settings.trace.when, settings.trace.content) == ("all", "headers")
        assert settings.admin.address == Address("127.0.0.1", 8025)

    @pytest.mark.parametrize("listen", ["127.0.0.1:2526", "0.0.0.0:2526", "localhost:2526"])
    def test_the_admin_address_cannot_be_that_of_a_listener(
        self, tmp_path: Path, listen: str
    ) -> None:
        reported = rf'cannot be bound: "{listen}" of listeners.* is at the same address and port'
        with pytest.raises(ConfigError, match=rf"^--admin: {reported}$"):
            from_flags(None, [listen], ["h:1"], admin="127.0.0.1:2526")
        file = load(write(tmp_path, GOOD + '[admin]\naddress = "127.0.0.1:2526"\n'))
        with pytest.raises(ConfigError, match=rf"^admin.address: {reported}$"):
            from_flags(file, [listen], [])
        file = load(write(tmp_path, text_of(listen)))
        with pytest.raises(ConfigError, match=rf"^--admin: {reported}$"):
            from_flags(file, [], [], admin="127.0.0.1:2526")

    def test_an_address_for_all_needs_a_token(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"--admin: admin.token is missing"):
            from_flags(load(write(tmp_path, GOOD)), [], [], admin="0.0.0.0:8025")

    def test_a_directory_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        what = r"--trace: cannot be created: .*/file is not a directory"
        with pytest.raises(ConfigError, match=what):
            from_flags(None, ["[::1]:1"], ["h:1"], trace=tmp_path / "file" / "traces")

    def test_a_directory_that_cannot_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "access", lambda _, mode: mode == os.F_OK)
        with pytest.raises(ConfigError, match=r"nothing can be written in .*: permission denied"):
            from_flags(None, ["[::1]:1"], ["h:1"], trace=tmp_path)
