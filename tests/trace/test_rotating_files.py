"""The files of a trace: how they grow, how many are kept, and what happens on a full disk."""

import errno
import json
import os
import shutil
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest

from smtpproxy.trace import rotating_files as files_module
from smtpproxy.trace.records import HEADER
from smtpproxy.trace.rotating_files import RotatingFiles
from tests.support.observed_session import Traced, Watched

LINE = b'{"number":%d' + b" " * 60 + b"}\n"


def number_in(path: Path) -> int:
    """Return the number in the one line of a file."""
    header, line = path.read_bytes().splitlines()
    assert header + b"\n" == HEADER
    return int(json.loads(line)["number"])


def write(files: RotatingFiles, line: bytes) -> None:
    files.write([line], 1, len(line))


class TestFiles:
    def test_they_are_rotated_by_size_and_the_oldest_removed(self, tmp_path: Path) -> None:
        files = RotatingFiles(tmp_path, 1, 100, 3)
        others = tmp_path / "trace-20200101T000000.000000-w0-1-1.jsonl"
        others.touch()
        for number in range(10):
            write(files, LINE % number)
        files.close()
        paths = sorted(tmp_path.glob("*-w1-*"))
        assert [number_in(path) for path in paths] == [7, 8, 9]
        assert paths[0].stat().st_mode & 0o777 == 0o640
        assert others.exists()

    def test_files_of_a_later_date_are_the_oldest(self, tmp_path: Path) -> None:
        """The clock was wrong when they were written, so that they are from before all others."""
        later = [tmp_path / f"trace-2999010{day}T000000.000000-w1-1-1.jsonl" for day in (1, 2, 3)]
        before = tmp_path / "trace-20200101T000000.000000-w1-1-1.jsonl"
        for path in (*later, before):
            path.touch()
            os.utime(path, (32e9, 32e9))
        files = RotatingFiles(tmp_path, 1, 100, 3)
        for number in range(3):
            write(files, LINE % number)
        files.close()
        written = [number_in(path) for path in sorted(tmp_path.iterdir())]
        assert (written, files.lost) == ([0, 1, 2], 0)

    def test_a_clock_that_goes_back_does_not_remove_what_was_just_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Clock(datetime):
            hours = 24

            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
                cls.hours -= 1
                return datetime(2026, 1, 1, cls.hours, tzinfo=tz)

        monkeypatch.setattr(files_module, "datetime", Clock)
        files = RotatingFiles(tmp_path, 1, 100, 3)
        for number in range(10):
            write(files, LINE % number)
        files.close()
        written = [number_in(path) for path in sorted(tmp_path.iterdir())]
        assert (written, files.lost) == ([7, 8, 9], 0)

    def test_only_trace_files_are_removed(self, tmp_path: Path) -> None:
        kept = [
            tmp_path / "trace-20200101T000000.000000-w1-1-1-of-the-customer.jsonl",
            tmp_path / "trace-for-me-w1-x.jsonl",
            tmp_path / "trace-20200101T000000.000000-w11-1-1.jsonl",
        ]
        for path in kept:
            path.touch()
        directory = tmp_path / "trace-20200101T000000.000000-w1-1-1.jsonl"
        directory.mkdir()
        files = RotatingFiles(tmp_path, 1, 100, 1)
        for _ in range(3):
            write(files, b"%s\n" % (b" " * 90))
        files.close()
        assert len(list(tmp_path.iterdir())) == len(kept) + 2
        assert all(path.exists() for path in (*kept, directory))

    @pytest.mark.parametrize("umask", [0, 0o077])
    def test_a_new_directory_is_not_for_everybody(self, umask: int, tmp_path: Path) -> None:
        """Nor those above it that are made with it."""
        before = os.umask(umask)
        try:
            files = RotatingFiles(tmp_path / "new" / "trace", 1, 100, 3)
            files.write([b"{}\n"], 1, 3)
            files.close()
        finally:
            os.umask(before)
        for each in (tmp_path / "new", tmp_path / "new" / "trace"):
            assert each.stat().st_mode & 0o777 == 0o750

    def test_a_full_disk_is_logged_once_and_counted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        full = OSError(errno.ENOSPC, "No space left on device")

        def write_part(*_: object) -> int:
            raise full

        traced = Traced(tmp_path)
        session = Watched(traced.trace)
        traced.trace.writer._log = files_log = Lines()
        with monkeypatch.context() as patch:
            patch.setattr(files_module.os, "write", write_part)
            for _ in range(3):
                session.relay("text")
                traced.later.run()
                traced.files._queue.put(([], 0, 0))
                while not traced.files._queue.empty():
                    pass
        assert session.got[-1] == b"250 2.0.0 queued\r\n"
        assert traced.trace.lost > 5
        traced.records()
        assert [event for event, _ in files_log.lines] == ["trace_records_lost"] * 2
        assert files_log.lines[0][1]["reason"] == "No space left on device"

    def test_removed_files_are_created_again(self, tmp_path: Path) -> None:
        directory = tmp_path / "trace"
        files = RotatingFiles(directory, 0, 1000, 3)
        write(files, b'{"a":1}\n')
        while not list(directory.glob("*")):
            pass
        shutil.rmtree(directory)
        write(files, b'{"b":2}\n')
        files.close()
        (path,) = directory.iterdir()
        assert (path.read_bytes(), files.lost) == (HEADER + b'{"b":2}\n', 0)

    def test_a_torn_line_does_not_swallow_the_next(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = os.write
        answers = iter([99, 3, OSError(errno.ENOSPC, "full")])

        def write_part(descriptor: int, octets: bytes) -> int:
            answer = next(answers, None)
            if isinstance(answer, OSError):
                raise answer
            return real(descriptor, octets[:answer])

        monkeypatch.setattr(files_module.os, "write", write_part)
        files = RotatingFiles(tmp_path, 0, 1000, 3)
        write(files, b'{"a":1}\n')
        write(files, b'{"b":2}\n')
        files.close()
        (path,) = tmp_path.iterdir()
        assert path.read_bytes() == HEADER + b'{"a\n{"b":2}\n'
        assert files.lost == 1

    @pytest.mark.parametrize("written", [0, 5])
    def test_a_file_without_its_header_is_not_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
    ) -> None:
        real = os.write
        answers = iter([written])
        monkeypatch.setattr(
            files_module.os, "write", lambda fd, octets: real(fd, octets[: next(answers, None)])
        )
        files = RotatingFiles(tmp_path, 0, 1000, 3)
        write(files, LINE % 1)
        write(files, LINE % 2)
        files.close()
        (path,) = tmp_path.iterdir()
        assert (number_in(path), files.lost, files.why) == (2, 1, "No space left on device")

    def test_a_slow_disk_loses_records_not_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(files_module, "WAITING_OCTETS", 10)
        files = RotatingFiles(tmp_path, 0, 1000, 3)
        monkeypatch.setattr(files, "_written", -100)
        write(files, b"x\n")
        assert (files.lost, files.why) == (1, "the disk is too slow")
        files.close()

    def test_a_directory_that_cannot_be_made_stops_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        files = RotatingFiles(tmp_path / "file" / "deep", 0, 1000, 3)
        write(files, b"x\n")
        files.close()
        assert files.lost == 1


class Lines:
    """A fake of the log."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def error(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))
