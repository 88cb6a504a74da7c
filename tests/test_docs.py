"""The documents: what they print can be copied, and what they have to name is there."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import trustme
from click.testing import CliRunner

from smtpproxy import cli
from smtpproxy.config.schema import BackendSettings, ListenerSettings, Settings
from smtpproxy.core import replies
from smtpproxy.log.events import EVENTS
from smtpproxy.metrics.definitions import DEFINITIONS, INSTANCE

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [ROOT / "README.md", *(ROOT / ".github").glob("*.md"), *(ROOT / "deploy").rglob("*.md")]
)
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in PAGES}
TROUBLESHOOTING = TEXTS["deploy/troubleshooting.md"]

LISTENER = '[listeners.smtp]\naddress = "127.0.0.1:2525"\n'
FRESH = "python3 -m venv .venv && .venv/bin/pip install "
BACKEND = '[backends.old-mta]\nservers = ["10.0.0.5:25"]\n'


def _settings() -> Iterator[tuple[str, str]]:
    for name, text in TEXTS.items():
        for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL):
            yield name, block


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("certificate")
    for name in ("mx", "mail", "rsa", "ecdsa", "client"):
        kind = trustme.KeyType.RSA if name == "rsa" else trustme.KeyType.ECDSA
        issued = trustme.CA().issue_cert("mx.example.org", key_type=kind)
        issued.private_key_and_cert_chain_pem.write_to_path(path / f"{name}.pem")
        (path / f"{name}.pem").chmod(0o600)
    return path


@pytest.mark.parametrize(("name", "block"), list(_settings()))
def test_settings_have_no_problem(name: str, block: str, certificate: Path, tmp_path: Path) -> None:
    """A listener or a backend is added to what is only a part of a file."""
    del name
    tables = tomllib.loads(block)
    whole = block + LISTENER * ("listeners" not in tables) + BACKEND * ("backends" not in tables)
    whole = re.sub(r'"/etc/smtpproxy/(\w+\.pem)"', rf'"{certificate}/\1"', whole)
    whole = whole.replace('"/var/log/smtpproxy"', f'"{tmp_path}"')
    (tmp_path / "smtpproxy.toml").write_text(whole)
    result = CliRunner().invoke(cli.main, ["check", "-c", str(tmp_path / "smtpproxy.toml")])
    assert result.exit_code == 0, result.output


def _commands() -> Iterator[tuple[str, str]]:
    """Yield the page and each line of it that runs smtpproxy."""
    for name, text in TEXTS.items():
        blocks = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        lines = re.findall(r"^ {4,}(.*)$", blocks, re.MULTILINE)
        for line in [*lines, *re.findall(r"`(smtpproxy [^`]+)`", blocks)]:
            for part in re.split(r"&&|\||>|  +#|;", line):
                words = re.sub(r"^\$ |^sudo |^docker run .* (?=smtpproxy$)", "", part.strip())
                if re.match(r"(\S*/)?smtpproxy( [a-z-]|$)", words):
                    yield name, words


@pytest.mark.parametrize(("name", "line"), list(_commands()))
def test_commands_are_those_of_the_program(name: str, line: str) -> None:
    """Parsed as the program does it, and not run."""
    del name
    command: click.Command = cli.main
    words = shlex.split(line)[1:]
    context = click.Context(command, resilient_parsing=True, **command.context_settings)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, f"no command {words[0]}"
        command, words = found, words[1:]
        context = click.Context(command, parent=context, resilient_parsing=True)
    command.make_parser(context).parse_args(list(words))


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str) -> None:
    text = re.sub(r"```.*?```", "", TEXTS[name], flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]*)(?:#[^)]*)?\)", text):
        if target and "://" not in target:
            assert (ROOT / name).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("name", TEXTS)
def test_files_that_are_named_exist(name: str) -> None:
    named = re.findall(r"`((?:tests|smtpproxy|deploy|\.ci)/[\w./-]+)", TEXTS[name])
    assert [each for each in named if not (ROOT / each).exists()] == []


def _settings_named() -> list[tuple[str, str]]:
    single = "listener|limits|timeouts|log|trace|admin"  # the first is what it was called before
    pattern = rf"`(?:(listeners|backends)(?:\.\*|\.NAME)|({single}))\.(\w+)"
    return sorted(
        {
            (table or other, key)
            for text in TEXTS.values()
            for table, other, key in re.findall(pattern, text)
        }
    )


@pytest.mark.parametrize(("table", "key"), _settings_named())
def test_settings_that_are_named_exist(table: str, key: str) -> None:
    known = Settings.__annotations__[table]
    struct = {"listeners": ListenerSettings, "backends": BackendSettings}.get(table, known)
    assert key in struct.__struct_fields__


def test_metrics_that_are_named_exist() -> None:
    texts = "\n".join(TEXTS.values())
    named = set(re.findall(r"smtpproxy_([a-z_]+?)(?:_total)?(?:\{[^}]*\})?`", texts))
    assert len(named) > 5
    label = INSTANCE.removeprefix("smtpproxy_")
    assert named - DEFINITIONS.keys() == {label}


def _attacks() -> list[tuple[str, str]]:
    """Return the heading and the text of each section of the security page."""
    sections = TEXTS["deploy/security.md"].split("\n## ")[1:]
    return [(each.partition("\n")[0], each.partition("\n")[2]) for each in sections]


@pytest.mark.parametrize(("attack", "text"), _attacks(), ids=[each[0] for each in _attacks()])
def test_each_attack_names_the_tests_that_hold_it(attack: str, text: str) -> None:
    paths = [ROOT / each for each in re.findall(r"`(tests/[\w./-]+)`", text)]
    assert paths, attack
    files = [file for path in paths for file in ([path] if path.is_file() else path.glob("*.py"))]
    defined = {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text())}
    assert set(re.findall(r"`(test_\w+)`", text)) <= defined


def _anchors(text: str) -> set[str]:
    headings = re.findall("^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("name", TEXTS)
def test_anchors_are_headings(name: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", TEXTS[name]):
        if "://" not in target:
            page = (ROOT / name).parent.joinpath(target) if target else ROOT / name
            assert anchor in _anchors(page.read_text()), f"{target}#{anchor}"


def _own_replies() -> Iterator[bytes]:
    for value in vars(replies).values():
        for each in value.values() if isinstance(value, dict) else [value]:
            if isinstance(each, bytes) and re.match(rb"\d{3} \d\.\d+\.\d+ ", each):
                yield each


@pytest.mark.parametrize("reply", list(_own_replies()), ids=lambda reply: reply[:40].decode())
def test_each_reply_of_the_proxy_has_a_row_in_troubleshooting(reply: bytes) -> None:
    code, text = reply.decode().rstrip().split(" %b Error: ") if b"%b" in reply else ("", "")
    shown = f"`{code} ... {text}`" if code else f"`{reply.decode().rstrip()}`"
    assert f"\n| {shown} | " in TROUBLESHOOTING


def test_replies_are_found() -> None:
    assert len(list(_own_replies())) > 35
    assert replies.BACKEND_LOST in list(_own_replies())


@pytest.mark.parametrize("event", EVENTS)
def test_each_log_event_has_a_row_in_troubleshooting(event: str) -> None:
    assert f"`{event}`" in TROUBLESHOOTING


def test_the_readme_can_be_read_in_five_minutes() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 150


@pytest.mark.parametrize(
    "command",
    [
        FRESH + "-q -e . && .venv/bin/smtpproxy demo",
        FRESH + "-q -e '.[test]' && .venv/bin/python -m pytest",
    ],
)
def test_the_readme_has_the_commands_of_a_fresh_clone(command: str) -> None:
    assert command in TEXTS["README.md"]


def test_the_handbook_lists_its_pages() -> None:
    """A page is found by its table of contents, or not at all."""
    contents = TEXTS["deploy/README.md"]
    pages = {name.removeprefix("deploy/") for name in TEXTS if name.startswith("deploy/")}
    assert [page for page in sorted(pages - {"README.md"}) if f"]({page})" not in contents] == []


def test_the_changelog_can_be_read_in_a_terminal() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    assert [line for line in lines if len(line) > 100] == []


def test_the_map_of_the_tests_lists_every_group() -> None:
    """And no group that does not exist."""
    text = (ROOT / "tests" / "README.md").read_text()
    rows = re.findall(r"^\| ((?:`\w+/` ?)+) \|", text, re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`(\w+)/`", row)}
    groups = {path.parent.name for path in (ROOT / "tests").glob("*/__init__.py")}
    assert listed == groups


def test_the_map_of_the_code_names_files_that_exist() -> None:
    """A word with a slash in it is a file or a package below smtpproxy/."""
    text = (ROOT / "smtpproxy" / "README.md").read_text()
    named = set(re.findall(r"`(\w+/[\w/.]*)`", text)) | set(re.findall(r"\b(net/\w+)", text))
    missing = []
    for name in named:
        path = ROOT if name.startswith(("tests/", "deploy/")) else ROOT / "smtpproxy"
        found = path / name
        if not found.exists() and not found.with_suffix(".py").exists():
            missing.append(name)
    assert missing == []
    assert len(named) > 40
