"""The Debian package: built, installed on a system that has nothing of ours, upgraded, removed."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import smtpproxy
from tests.deploy.conftest import CLUSTER
from tests.deploy.debian import Booted, System, system
from tests.support.processes import eventually

pytestmark = pytest.mark.long

INSTALL = (
    *("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y", "--no-install-recommends"),
    *("-o", "Dpkg::Options::=--force-confold", "install"),
)
SETTINGS = "/etc/smtpproxy/smtpproxy.toml"
MTA = """\
listen on 127.0.0.1 port 2525 hostname mta.example
action keep relay host smtp://127.0.0.1:9
match from any for any action keep
"""
SEND = (
    *("swaks", "--pipeline", "--server", "127.0.0.1", "--timeout", "30"),
    *("--from", "a@sender.example", "--to", "b@rcpt.example,c@rcpt.example"),
)
HOLD = """\
import os, smtplib
os.mkfifo("/srv/go")
with smtplib.SMTP("127.0.0.1", 25, timeout=200) as client:
    client.ehlo()
    client.mail("a@sender.example")
    client.rcpt("b@rcpt.example")
    os.mkdir("/srv/held")
    open("/srv/go").read()
    assert client.data("Subject: held\\n\\nhello\\n")[0] == 250
"""


TOKEN = "0123456789abcdef"
DROP_IN = "etc/systemd/system/smtpproxy.service.d"
LOCAL = """\
[Service]
LoadCredential=admin-token:/etc/admin-token
"""
ADMIN = """
[admin]
address = "127.0.0.1:8025"
token_file = "/run/credentials/smtpproxy.service/admin-token"
"""
ASK = """\
import sys, urllib.request
header = {"Authorization": f"Bearer {sys.argv[2]}"}
urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:8025" + sys.argv[1], None, header))
"""


@pytest.fixture(scope="module")
def older(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same package as an earlier version, with other settings and a module that is gone."""
    tree = tmp_path_factory.mktemp("older") / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    (program,) = tree.glob("opt/smtpproxy/lib/python*/site-packages/smtpproxy")
    _replace(tree / "DEBIAN/control", "^Version: .*", "Version: 0.0.1")
    _replace(program / "__init__.py", '__version__ = ".*"', '__version__ = "0.0.1"')
    shutil.rmtree(program / "__pycache__")
    (program / "gone.py").touch()
    _replace(tree / SETTINGS.lstrip("/"), "^# smtpproxy", "# smtpproxy 0.0.1")
    built = tree.with_suffix(".deb")
    subprocess.run(["dpkg-deb", "-Znone", "--root-owner-group", "-b", tree, built], check=True)
    return built


def _replace(file: Path, pattern: str, text: str) -> None:
    changed, times = re.subn(pattern, text, file.read_text(), count=1, flags=re.MULTILINE)
    assert times == 1, f"{file} has no {pattern}"
    file.write_text(changed)


def test_the_package_is_named_for_its_version_and_architecture(package: Path) -> None:
    fields = _fields(package)
    assert package.name == f"smtpproxy_{fields['Version']}_{fields['Architecture']}.deb"
    assert fields["Version"] == smtpproxy.__version__
    assert re.fullmatch(r"python3 \(>= 3\.\d+~\), python3 \(<< 3\.\d+\)", fields["Depends"])


def test_the_package_has_no_trace_of_the_place_where_it_was_built(
    package: Path, tmp_path: Path
) -> None:
    subprocess.run(["dpkg-deb", "--raw-extract", package, tmp_path], check=True)
    found = subprocess.run(
        ["grep", "-rlE", "/tmp/tmp|/stage/", tmp_path], capture_output=True, text=True, check=False
    )
    assert found.stdout == ""


def _fields(package: Path) -> dict[str, str]:
    listed = subprocess.run(
        ["dpkg-deb", "--field", package], capture_output=True, text=True, check=True
    )
    return dict(re.findall(r"^(\S+): (.*)$", listed.stdout, re.MULTILINE))


@pytest.fixture(scope="module")
def installed(package: Path, older: Path) -> Iterator[System]:
    """A system on which the earlier version has been installed, with what it depends on."""
    with system() as fresh:
        shutil.copy(older, fresh.root / "srv/older.deb")
        shutil.copy(package, fresh.root / "srv/newer.deb")
        done = fresh.run("apt-get", "-q", "update")
        assert done.returncode == 0, done.stdout + done.stderr
        done = fresh.run(*INSTALL, "opensmtpd", "swaks", "/srv/older.deb")
        assert done.returncode == 0, done.stdout + done.stderr
        yield fresh


def test_the_program_runs_where_nothing_else_was_installed(installed: System) -> None:
    assert installed.run("smtpproxy", "--version").stdout.startswith("smtpproxy 0.0.1, Python 3.")
    done = installed.run("smtpproxy", "check", "-c", SETTINGS)
    assert "no problems found" in done.stdout, done.stderr
    (installed.root / "etc/cluster.toml").write_text(CLUSTER)
    done = installed.run("smtpproxy", "check", "/etc/cluster.toml")
    assert "no problems found" in done.stdout, done.stderr
    done = installed.run("smtpproxy", "demo", "--rtt", "0.01")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "file",
    [
        "usr/share/bash-completion/completions/smtpproxy",
        "usr/share/doc/smtpproxy/README.Debian",
        "usr/share/fish/vendor_completions.d/smtpproxy.fish",
        "usr/share/man/man5/smtpproxy.toml.5.gz",
        "usr/share/man/man8/smtpproxy.8.gz",
        "usr/share/zsh/vendor-completions/_smtpproxy",
    ],
)
def test_what_goes_with_the_program_is_where_debian_looks_for_it(
    installed: System, file: str
) -> None:
    assert (installed.root / file).stat().st_size > 400


def test_bash_completes_its_commands(installed: System) -> None:
    words = (
        "source /usr/share/bash-completion/completions/smtpproxy; COMP_WORDS=(smtpproxy ch); "
        'COMP_CWORD=1; _smtpproxy_completion smtpproxy; echo "${COMPREPLY[@]}"'
    )
    assert installed.run("bash", "-c", words).stdout == "check\n"


def test_the_service_runs_is_upgraded_and_removed(installed: System) -> None:
    """From the first start to the purge, with systemd and every restriction of the unit."""
    (installed.root / "etc/smtpd.conf").write_text(MTA)
    (installed.root / "srv/hold.py").write_text(HOLD)
    _give_a_secret(installed.root)
    with installed.boot() as booted:
        _nothing_runs_at_first(booted)
        _succeed(booted, "systemctl", "restart", "opensmtpd.service")
        _it_serves_and_reloads(booted)
        _its_health_can_be_asked(booted)
        _an_upgrade_hands_over_and_cuts_no_session(booted)
        _what_is_removed_stops_and_leaves_the_settings(booted)
        _succeed(booted, "dpkg", "--purge", "smtpproxy")
        assert _succeed(booted, "find", "/", "-xdev", "-name", "*smtpproxy*") == ""


def _nothing_runs_at_first(booted: Booted) -> None:
    units = ("smtpproxy.socket", "smtpproxy.service")
    assert booted.run("systemctl", "is-enabled", *units).stdout == "disabled\ndisabled\n"
    assert booted.run("systemctl", "is-active", *units).stdout == "inactive\ninactive\n"
    files = [f"/usr/lib/systemd/system/{unit}" for unit in units]
    done = booted.run("systemd-analyze", "verify", "--man=no", *files)
    assert (done.returncode, done.stderr) == (0, "")


def _it_serves_and_reloads(booted: Booted) -> None:
    _succeed(booted, "sed", "-i", 's/^# hostname = .*/hostname = "kept.example"/', SETTINGS)
    _succeed(booted, "systemctl", "enable", "--now", "smtpproxy.socket", "smtpproxy.service")
    _a_message_is_found_in_both_logs(booted)
    assert _succeed(booted, "smtpproxy", "health") == "ok\n"
    assert _succeed(booted, "smtpproxy", "health", "--ready") == "ready\n"
    _succeed(booted, "systemctl", "reload", "smtpproxy.service")
    eventually(lambda: '"event":"reloaded"' in _log(booted) or None, "the end of the reload")
    assert "warning: admin.token_file: /run/credentials/smtpproxy.service/" in _log(booted)
    _send(booted, "second")
    mail = 2  # the syslog facility
    relayed = '"event":"message_relayed"'
    eventually(
        lambda: _log(booted, f"SYSLOG_FACILITY={mail}").count(relayed) == 2 or None,
        "a log line for each message",
    )
    levels = re.findall('"level":"([a-z]+)"', _log(booted, "-p", "warning"))
    assert set(levels) == {"warning"}, _log(booted)
    assert _succeed(booted, "stat", "-c", "%u", f"/proc/{_main_pid(booted)}") != "0\n"


def _a_message_is_found_in_both_logs(booted: Booted) -> None:
    """By its Message-ID in the proxy's log, and by its queue id, which that shows, in the MTA's."""
    _send(booted, "first")
    wanted = '"message_id":"<first@sender.example>"'
    found = eventually(lambda: re.search(f"{{.*{wanted}.*}}", _log(booted)), "the log line")
    line = json.loads(found[0])
    assert (line["event"], line["groups"]) == ("message_relayed", [4, 1])
    logged = _succeed(booted, "journalctl", "--unit=opensmtpd.service", "--output=cat")
    assert f"smtp message msgid={line['queue_id']} " in logged


def _send(booted: Booted, name: str) -> None:
    _succeed(booted, *SEND, "--header", f"Message-Id: <{name}@sender.example>")


def _give_a_secret(root: Path) -> None:
    """Have systemd pass the token, from a file that the service's own user cannot read."""
    (root / "etc/admin-token").touch(0o600)
    (root / "etc/admin-token").write_text(TOKEN)
    (root / DROP_IN).mkdir()
    (root / DROP_IN / "local.conf").write_text(LOCAL)
    with (root / SETTINGS.lstrip("/")).open("a") as settings:
        settings.write(ADMIN)


def _its_health_can_be_asked(booted: Booted) -> None:
    assert _succeed(booted, "smtpproxy", "health", "--ready") == "ready\n"
    stranger = booted.run("setpriv", "--reuid=65534", "--clear-groups", "smtpproxy", "health")
    assert stranger.returncode == 1
    assert "no permission to ask at /run/smtpproxy/control.sock" in stranger.stderr
    _succeed(booted, "python3", "-c", ASK, "/metrics", TOKEN)
    assert booted.run("python3", "-c", ASK, "/metrics", "none").returncode == 1
    _succeed(booted, "python3", "-c", ASK, "/readyz", "none")


def _an_upgrade_hands_over_and_cuts_no_session(booted: Booted) -> None:
    before = _main_pid(booted)
    _succeed(booted, "systemd-run", "--quiet", "--unit=hold", "/usr/bin/python3", "/srv/hold.py")
    eventually(lambda: _exists(booted, "/srv/held") or None, "an open transaction")

    # Settings that the new version does not accept leave the old one as it is.
    _succeed(booted, "sed", "-i", "1i bad", SETTINGS)
    assert "smtpproxy still runs as version 0.0.1: " in _succeed(booted, *INSTALL, "/srv/newer.deb")
    assert [_show(booted, name) for name in ("ActiveState", "MainPID")] == ["active", before]
    _succeed(booted, "sed", "-i", "1d", SETTINGS)

    _succeed(booted, *INSTALL, "--reinstall", "/srv/newer.deb")
    version = f"smtpproxy {smtpproxy.__version__}"
    assert _succeed(booted, "smtpproxy", "--version").startswith(f"{version}, ")
    eventually(lambda: '"event":"handed_over"' in _log(booted) or None, "the hand-over")
    after = eventually(lambda: _show(booted, "MainPID") != before and _main_pid(booted), "its id")
    assert _exists(booted, f"/proc/{before}")
    assert 'hostname = "kept.example"' in _succeed(booted, "cat", SETTINGS)
    assert _succeed(booted, "find", "/opt/smtpproxy", "-name", "gone*") == ""
    _send(booted, "third")
    assert _succeed(booted, "smtpproxy", "health", "--ready") == "ready\n"

    # The open transaction ends under the old version, which then ends; systemd follows the new one.
    _succeed(booted, "sh", "-c", "echo > /srv/go")
    eventually(lambda: not _exists(booted, f"/proc/{before}") or None, "the end of the old version")
    assert booted.run("systemctl", "is-failed", "hold.service").stdout != "failed\n"
    eventually(lambda: _show(booted, "StatusText").startswith(f"{version}:") or None, "its status")
    state = [_show(booted, name) for name in ("ActiveState", "MainPID", "NRestarts")]
    assert state == ["active", after, "0"]
    reloads = _log(booted).count('"event":"reloaded"')
    _succeed(booted, "systemctl", "reload", "smtpproxy.service")
    eventually(lambda: _log(booted).count('"event":"reloaded"') > reloads or None, "a reload")
    assert _main_pid(booted) == after
    _send(booted, "fourth")


def _what_is_removed_stops_and_leaves_the_settings(booted: Booted) -> None:
    _succeed(booted, "rm", "-r", f"/{DROP_IN}")
    _succeed(booted, "dpkg", "--remove", "smtpproxy")
    assert booted.run("test", "-e", "/run/smtpproxy").returncode == 1
    units = ("systemctl", "list-units", "--all", "--plain", "--no-legend", "smtpproxy*")
    eventually(lambda: booted.run(*units).stdout == "" or None, "systemd has forgotten its units")
    assert booted.run(*SEND, "--header", "Message-Id: <refused@sender.example>").returncode != 0
    assert _succeed(booted, "find", "/etc", "-name", "*smtpproxy*").splitlines() == [
        "/etc/fail2ban/filter.d/smtpproxy.conf",
        "/etc/smtpproxy",
        SETTINGS,
        f"{SETTINGS}.dpkg-dist",
    ]


def _main_pid(booted: Booted) -> str:
    return _show(booted, "MainPID")


def _show(booted: Booted, name: str) -> str:
    return _succeed(booted, "systemctl", "show", "-P", name, "smtpproxy.service").strip()


def _exists(booted: Booted, path: str) -> bool:
    return booted.run("test", "-e", path).returncode == 0


def _log(booted: Booted, *matching: str) -> str:
    return _succeed(booted, "journalctl", "-u", "smtpproxy.service", "-o", "cat", *matching)


def _succeed(booted: Booted, *argv: str) -> str:
    done = booted.run(*argv)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}\n{_state(booted)}"
    return done.stdout


def _state(booted: Booted) -> str:
    return booted.run("journalctl", "--no-pager", "-n", "40").stdout
