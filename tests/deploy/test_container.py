"""The container image: the steps of its Dockerfile, without an engine, on a Debian system.

Each stage begins with a system of this machine's release, whatever release FROM names. The result
runs as a container does: as process 1, without privileges, in a read-only root.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from smtpproxy import cli
from smtpproxy.control_socket import locations
from tests.deploy.conftest import CLUSTER, compile_asked
from tests.deploy.debian import System, first_process, system
from tests.support.processes import Process, eventually

pytestmark = pytest.mark.long

SOURCE = Path(__file__).parents[2]
CONTAINER = SOURCE / "deploy/container"
INSTRUCTIONS = [
    (name, words)
    for name, words in re.findall(
        r"^([A-Z]+) +(.*)$",
        re.sub(r"^#.*\n|\\\n\s*", "", (CONTAINER / "Dockerfile").read_text(), flags=re.MULTILINE),
        re.MULTILINE,
    )
]
COMPOSE = yaml.safe_load((CONTAINER / "compose.yml").read_text())["services"]["smtpproxy"]


@dataclass
class Image:
    """A stage of a build: its system, and what the instructions have set so far."""

    system: System
    variables: dict[str, str] = field(default_factory=dict)
    directory: str = "/"
    user: str = "0:0"
    words: dict[str, list[str]] = field(default_factory=dict)
    """Of ENTRYPOINT, CMD, EXPOSE, STOPSIGNAL, VOLUME and HEALTHCHECK."""

    def options(self, **more: str) -> list[str]:
        """Return the options of nspawn for a command in it."""
        variables = [f"--setenv={key}={value}" for key, value in (self.variables | more).items()]
        return [*variables, f"--chdir={self.directory}"]


class Builder:
    """Carries out the instructions of a Dockerfile in order; an unknown one is an error."""

    def __init__(self, wheels: Path) -> None:
        self.images: dict[str, Image] = {}
        self._systems = ExitStack()
        self._wheels = wheels
        self._image: Image | None = None

    def build(self) -> Image:
        """Return the last stage."""
        for name, words in INSTRUCTIONS:
            getattr(self, f"_{name.lower()}")(words)
        assert self._image is not None
        return self._image

    def close(self) -> None:
        """Delete all systems."""
        self._systems.close()

    def _from(self, words: str) -> None:
        found = re.fullmatch(r"debian:[a-z]+-slim(?: AS (\w+))?", words)
        assert found, f"FROM {words}"
        self._image = Image(self._systems.enter_context(system()))
        self.images[found[1] or ""] = self._image

    def _run(self, words: str) -> None:
        image = self.current
        # The index is a directory; all else is as in a build.
        index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"}
        options = (f"--bind-ro={self._wheels}:/wheels", *image.options(**index))
        done = image.system.run("/bin/sh", "-c", words, nspawn=options, timeout_s=900)
        assert done.returncode == 0, f"RUN {words}\n{done.stdout}{done.stderr}"

    def _copy(self, words: str) -> None:
        image = self.current
        origin, names = SOURCE, words.split()
        if names[0].startswith("--from="):
            origin = self.images[names.pop(0).removeprefix("--from=")].system.root
        *sources, target = names
        for name in sources:
            source = origin / name.lstrip("/")
            to = _below(image.system.root, Path(image.directory) / target)
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__") if origin == SOURCE else None
                shutil.copytree(source, to, symlinks=True, ignore=ignored, dirs_exist_ok=True)
            else:
                to.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, to)

    def _arg(self, words: str) -> None:
        # .ci/run-compiled tests the compiled wheel, so the image is compiled only if asked for.
        assert words.startswith("SMTPPROXY_COMPILE=")
        self.current.variables["SMTPPROXY_COMPILE"] = compile_asked()

    def _env(self, words: str) -> None:
        self.current.variables |= dict(word.split("=", 1) for word in shlex.split(words))

    def _workdir(self, words: str) -> None:
        self.current.directory = words
        _below(self.current.system.root, Path(words)).mkdir(parents=True, exist_ok=True)

    def _user(self, words: str) -> None:
        self.current.user = words

    def _label(self, words: str) -> None:
        assert all("=" in word for word in shlex.split(words))

    def _entrypoint(self, words: str) -> None:
        self.current.words["ENTRYPOINT"] = json.loads(words)

    def _cmd(self, words: str) -> None:
        self.current.words["CMD"] = json.loads(words)

    def _expose(self, words: str) -> None:
        self.current.words["EXPOSE"] = words.split()

    def _volume(self, words: str) -> None:
        self.current.words["VOLUME"] = words.split()

    def _healthcheck(self, words: str) -> None:
        options, _, argv = words.partition(" CMD ")
        assert all(option.startswith("--") for option in options.split())
        self.current.words["HEALTHCHECK"] = json.loads(argv)

    def _stopsignal(self, words: str) -> None:
        self.current.words["STOPSIGNAL"] = [words]

    @property
    def current(self) -> Image:
        """The stage that the instructions are in."""
        assert self._image is not None, "there is no FROM yet"
        return self._image


IN_CONTAINER = ("nsenter", "--mount", "--root", "--setuid=65532", "--setgid=65532", "--target")
"""What a command line begins with that runs in the namespaces of a process, as its user."""


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


@pytest.fixture(scope="module")
def image(wheels: Path) -> Iterator[Image]:
    builder = Builder(wheels)
    try:
        yield builder.build()
    finally:
        builder.close()


def as_container(image: Image, words: Sequence[str], **variables: str) -> list[str]:
    """Return a command line that runs the image as process 1, as `docker run --read-only` does."""
    options = [option for option in image.options(**variables) if "=" in option]
    user, group = image.user.split(":")
    drop = ("setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups")
    drop = (*drop, "--bounding-set=-all", "--no-new-privs", "--")
    closed = ("--read-only", "--private-network", "--console=pipe")
    # As their directories in the image are; nspawn hides /run.
    own = f"uid={user},gid={group},mode=0700"
    volumes = [f"--tmpfs={volume}:{own}" for volume in image.words["VOLUME"]]
    argv = image.system.argv(*closed, *volumes, *options)
    argv.remove("--as-pid2")
    return [*argv, *drop, *image.words["ENTRYPOINT"], *words]


def test_the_image_serves_and_drains_without_privileges_in_a_read_only_root(
    image: Image, tmp_path: Path
) -> None:
    variables = {"SMTPPROXY_BACKEND": "127.0.0.1:1", "SMTPPROXY_LISTEN": "0.0.0.0:2525"}
    argv = as_container(image, image.words["CMD"], **variables)
    nowhere_to_write = {"SYSTEMD_NSPAWN_TMPFS_TMP": "0"}
    with Process(argv, tmp_path / "log", nowhere_to_write) as container:
        listening = '"event":"listening","listener":"listener-1","address":"0.0.0.0:2525"'
        eventually(lambda: listening in container.printed() or None, "a listener")
        inside = first_process(container.pid)
        assert inside is not None, container.printed()
        assert re.search(
            r"^Uid:\t65532\t", Path(f"/proc/{inside}/status").read_text(), re.MULTILINE
        )
        check = [*IN_CONTAINER, str(inside), "--", *image.words["HEALTHCHECK"]]
        # Found as in the container.
        (path,) = [each for each in image.options() if each.startswith("--setenv=PATH=")]
        env = {"PATH": f"{path.removeprefix('--setenv=PATH=')}:{os.environ['PATH']}"}
        checks = {(): (0, "ok\n"), ("--ready",): (1, "not ready: no server of backend-1 is up\n")}
        for more, expected in checks.items():
            done = subprocess.run(
                [*check, *more], env=env, capture_output=True, text=True, timeout=30, check=False
            )
            assert (done.returncode, done.stdout) == expected, done.stderr
        (stop,) = image.words["STOPSIGNAL"]
        os.kill(inside, getattr(signal, stop))
        assert container.wait() == 0, container.printed()
    assert '"event":"stopped"' in container.printed()


def test_the_image_shows_what_the_proxy_does(image: Image, tmp_path: Path) -> None:
    with Process(as_container(image, ["demo", "--rtt", "0.01"]), tmp_path / "log") as container:
        assert container.wait() == 0, container.printed()


def test_the_image_can_join_a_cluster(image: Image, tmp_path: Path) -> None:
    settings = "/etc/cluster.toml"
    (image.system.root / settings[1:]).write_text(CLUSTER)
    with Process(as_container(image, ["check", settings]), tmp_path / "log") as container:
        assert container.wait() == 0, container.printed()


def test_the_image_has_no_pip_and_no_sources(image: Image) -> None:
    programs = {path.name for path in (image.system.root / "opt/smtpproxy/bin").iterdir()}
    assert "smtpproxy" in programs
    assert "pip" not in programs
    assert not (image.system.root / "source").exists()


def test_the_image_is_compiled_unless_the_build_says_otherwise(image: Image) -> None:
    """Built from the file as it is with SMTPPROXY_COMPILE=1 in this test's environment."""
    assert ("ARG", "SMTPPROXY_COMPILE=1") in INSTRUCTIONS
    compiled = sorted((image.system.root / "opt/smtpproxy/lib").rglob("smtpproxy/core/*.so"))
    assert bool(compiled) == (compile_asked() == "1")
    assert not (image.system.root / "usr/bin/gcc").exists()


def test_compose_and_image_fit_together(image: Image) -> None:
    (port,) = image.words["EXPOSE"]
    assert COMPOSE["ports"] == [f"25:{port}"]
    assert COMPOSE["environment"]["SMTPPROXY_LISTEN"].endswith(f":{port}")
    known = {option.envvar for option in cli.run.params}
    assert set(COMPOSE["environment"]) < known
    assert COMPOSE["read_only"] is True
    assert COMPOSE["healthcheck"]["test"] == ["CMD", *image.words["HEALTHCHECK"]]
    mounted = {each.partition(":")[0] for each in COMPOSE["tmpfs"]}
    assert mounted >= set(image.words["VOLUME"])
    (volume,) = image.words["VOLUME"]
    assert volume == str(locations.SYSTEM)
    user, group = image.user.split(":")
    made = f"install -d -o {user} -g {group} -m 700 {volume}"
    assert any(name == "RUN" and words.endswith(made) for name, words in INSTRUCTIONS)


def test_the_build_context_is_what_the_instructions_copy() -> None:
    ignore = (CONTAINER / "Dockerfile.dockerignore").read_text()
    let_through = set(re.findall("^!(.*)$", ignore, re.MULTILINE))
    copied = [words.split()[:-1] for name, words in INSTRUCTIONS if name == "COPY"]
    assert let_through == {
        name for names in copied for name in names if not names[0].startswith("--from")
    }
