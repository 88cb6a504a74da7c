"""Settings of TLS and identity: every mistake has its place, and every warning its reason."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from smtpproxy.cli import main
from smtpproxy.config.decoding import ConfigError
from smtpproxy.config.loader import load
from smtpproxy.config.tls_validation import exposed_listeners, weak_backends, weak_listeners
from smtpproxy.tls import contexts

ADDRESS = '[listeners.smtp]\naddress = "127.0.0.1:25"'
SERVERS = '[backends.mta]\nservers = ["10.0.0.5:25"]'


@pytest.fixture(scope="module")
def made_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    for name in ("mx", "other"):
        issued = trustme.CA().issue_cert(f"{name}.example")
        issued.cert_chain_pems[0].write_to_path(directory / f"{name}.pem")
        issued.private_key_pem.write_to_path(directory / f"{name}.key")
        issued.private_key_and_cert_chain_pem.write_to_path(directory / f"{name}.both")
        for kind in ("key", "both"):
            (directory / f"{name}.{kind}").chmod(0o640)
    (directory / "open.both").write_bytes((directory / "mx.both").read_bytes())
    (directory / "open.both").chmod(0o644)
    issued = trustme.CA().issue_cert("mx.example", key_type=trustme.KeyType.RSA)
    issued.private_key_and_cert_chain_pem.write_to_path(directory / "rsa.both")
    (directory / "short.both").write_bytes(with_short_key())
    (directory / "no.pem").write_text("nothing")
    return directory


@pytest.fixture
def keys(made_keys: Path, tmp_path: Path) -> Path:
    shutil.copytree(made_keys, tmp_path, dirs_exist_ok=True)
    return tmp_path


def with_short_key() -> bytes:
    """Return a certificate and its key of 1024 bits, as of an old device."""
    key = rsa.generate_private_key(65537, 1024)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mx.example")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(now - timedelta(1))
        .not_valid_after(now + timedelta(99))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private + certificate.public_bytes(Encoding.PEM)


def found(work: Path, listener: str, backend: str = "", address: str = ADDRESS) -> list[str]:
    """Return the problems of settings with these lines."""
    file = work / "p.toml"
    file.write_text(f"{address}\n{listener}\n{SERVERS}\n{backend}\n".replace("@", str(work)))
    try:
        load(file)
    except ConfigError as error:
        return [f"{problem.key} {problem.text}" for problem in error.problems]
    return []


GOOD = {
    "both in one file": 'tls = "starttls"\ncertificate = "@/mx.both"',
    "key beside it": 'tls = "implicit"\ncertificate = "@/mx.pem"\nkey = "@/mx.key"',
    "by name": 'tls = "starttls"\ncertificate = "@/mx.both"\n'
    '[listeners.smtp.sni."*.example"]\ncertificate = "@/other.both"',
    "both kinds of key": 'tls = "starttls"\ncertificate = "@/rsa.both"\n'
    'ecdsa_certificate = "@/mx.pem"\necdsa_key = "@/mx.key"',
    "both kinds of key by name": 'tls = "starttls"\ncertificate = "@/mx.both"\n'
    '[listeners.smtp.sni."*.example"]\ncertificate = "@/rsa.both"\n'
    'ecdsa_certificate = "@/other.both"',
    "old clients": 'tls = "starttls"\ncertificate = "@/rsa.both"\nminimum_tls = "1.0"\n'
    'ciphers = "legacy"',
    "a short key": 'tls = "starttls"\ncertificate = "@/short.both"\nciphers = "legacy"',
    "passed through": 'tls = "passthrough"\nrequire_tls = true\nauth = "tls-only"',
}

WRONG = {
    'tls = "starttls"': "certificate is missing",
    'tls = "starttls"\ncertificate = "mx.pem"': "certificate .* whole path",
    'tls = "starttls"\ncertificate = "@/none.pem"': "certificate cannot be read: no such file",
    'tls = "starttls"\ncertificate = "@/no.pem"': "certificate is not a PEM file",
    'tls = "starttls"\ncertificate = "@/mx.pem"': (
        "certificate is not a PEM file with a certificate and its key; if the key has a file of"
    ),
    'tls = "starttls"\ncertificate = "@/mx.pem"\nkey = "@/other.key"': "does not belong to the key",
    'tls = "starttls"\ncertificate = "@/mx.pem"\nkey = "@/none"': "key cannot be read",
    'tls = "starttls"\ncertificate = "@/short.both"': "certificate cannot be used: ee key too",
    'tls = "starttls"\ncertificate = "@/rsa.both"\necdsa_certificate = "@/none.pem"': (
        "ecdsa_certificate cannot be read: no such file"
    ),
    'tls = "starttls"\ncertificate = "@/rsa.both"\necdsa_certificate = "@/rsa.both"': (
        "ecdsa_certificate is not a certificate with an ECDSA key"
    ),
    'tls = "starttls"\ncertificate = "@/mx.both"\necdsa_certificate = "@/other.both"': (
        "smtp.certificate has an ECDSA key, like ecdsa_certificate"
    ),
    'tls = "starttls"\ncertificate = "@/rsa.both"\nsni."a.b" = '
    '{ certificate = "@/rsa.both", ecdsa_certificate = "@/no.pem" }': (
        "sni.*ecdsa_certificate is not a PEM file"
    ),
    'tls = "starttls"\ncertificate = "@/mx.both"\necdsa_key = "@/mx.key"': (
        "ecdsa_key is not used without ecdsa_certificate"
    ),
    'tls = "starttls"\ncertificate = "@/mx.both"\nsni."a.b" = '
    '{ certificate = "@/mx.both", ecdsa_key = "@/mx.key" }': "sni.*ecdsa_key is not used without",
    'tls = "starttls"\ncertificate = "@/mx.both"\nminimum_tls = "1.1"': (
        'minimum_tls needs ciphers = "legacy": TLS 1.1 has no others'
    ),
    'tls = "starttls"\ncertificate = "@/mx.both"\nminimum_tls = "1.3"\nciphers = "legacy"': (
        "ciphers is not used: with minimum_tls"
    ),
    'tls = "starttls"\ncertificate = "@/mx.both"\nciphers = "old"': 'ciphers must be "modern"',
    'minimum_tls = "1.3"': "minimum_tls is not used",
    'ciphers = "legacy"': "ciphers is not used",
    'ecdsa_certificate = "@/mx.both"': "ecdsa_certificate is not used",
    'certificate = "@/mx.both"': "certificate is not used",
    "require_tls = true": "require_tls no client can start TLS",
    'auth = "tls-only"': "auth no client can authenticate",
    'key = "@/mx.key"': "key is not used",
    'proxy_protocol = ["10.0.0.1/8"]': "proxy_protocol.* is an address inside a network",
    'xclient = ["everybody"]': "xclient.* is not a network",
    'tls = "starttls"\ncertificate = "@/mx.both"\nsni."a b" = { certificate = "@/mx.both" }': (
        "sni.* is not a host name"
    ),
    'tls = "starttls"\ncertificate = "@/mx.both"\n'
    '[listeners.smtp.sni."b.c"]\ncertificate = "@/no.pem"': ("sni.*certificate is not a PEM file"),
}

WRONG_BACKENDS = {
    'tls = "starttls"\nca_file = "@/no.pem"': "ca_file .*",
    'ca_file = "@/mx.pem"': "ca_file is not used",
    'tls = "opportunistic"\nserver_name = "mx.example"': "server_name is not used",
    'tls = "starttls"\nverify = false\nserver_name = "mx.example"': "server_name is not used",
    'minimum_tls = "1.0"': "minimum_tls is not used",
    'client_certificate = "@/mx.both"': "client_certificate is not used",
    'client_key = "@/mx.key"': "client_key is not used",
    'tls = "starttls"\nclient_key = "@/mx.key"': "client_key is not used without client_cert",
    'tls = "starttls"\nclient_certificate = "@/none.pem"': "client_certificate cannot be read",
    'tls = "starttls"\nclient_certificate = "@/no.pem"': "client_certificate is not a PEM file",
    'tls = "starttls"\nclient_certificate = "@/mx.pem"\nclient_key = "@/other.key"': (
        "client_certificate does not belong to the key"
    ),
    'tls = "starttls"\nclient_certificate = "@/open.both"': (
        "client_certificate has the mode 0644: other accounts can read"
    ),
    'tls = "starttls"\nclient_certificate = "@/mx.pem"\nclient_key = "@/open.both"': (
        "client_key has the mode 0644"
    ),
    'source = "0.0.0.0"': "source.* is not an IP address to connect from",
    'source = "mx.example"': "source.* is not an IP address to connect from",
    'source = "2001:db8::1"': "source cannot connect to 10.0.0.5:25: one is IPv4, the other IPv6",
    'source = "192.0.2.10"\nidentity = "transparent"': "source is not used: with identity = ",
    'identity = "xclinet"': "identity must be .* did you mean",
}


@pytest.mark.parametrize("name", GOOD)
def test_valid_settings_have_no_problem(name: str, keys: Path) -> None:
    assert found(keys, GOOD[name]) == []


@pytest.mark.parametrize("listener", WRONG)
def test_a_mistake_of_a_listener_is_reported_at_its_key(listener: str, keys: Path) -> None:
    (problem,) = found(keys, listener)
    assert problem.startswith("listeners.smtp.")
    assert_matches(WRONG[listener], problem)


@pytest.mark.parametrize(
    "backend",
    [
        'tls = "starttls"\nclient_certificate = "@/mx.both"',
        'tls = "opportunistic"\nclient_certificate = "@/mx.pem"\nclient_key = "@/mx.key"',
        'source = "192.0.2.10"',
        'source = "::ffff:192.0.2.10"',
    ],
)
def test_valid_settings_of_a_backend_have_no_problem(backend: str, keys: Path) -> None:
    assert found(keys, "", backend) == []


def test_a_source_needs_servers_with_addresses(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    text = f'{ADDRESS}\n[backends.mta]\nservers = ["{{}}"]\nsource = "{{}}"\n'
    file.write_text(text.format("unix:/x", "192.0.2.10"))
    with pytest.raises(ConfigError, match="source: is not used: unix:/x is a Unix socket"):
        load(file)
    for server in ("mx.example:25", "localhost:26"):
        file.write_text(text.format(server, "2001:db8::1"))
        assert load(file).backends["mta"].source == "2001:db8::1"


def test_a_source_of_another_machine_is_worth_a_warning(tmp_path: Path) -> None:
    """It is no mistake: the address of a cluster may come to this machine later."""
    file = tmp_path / "p.toml"
    for source, warned in (("192.0.2.1", True), ("127.0.0.1", False)):
        file.write_text(f'{ADDRESS}\n{SERVERS}\nsource = "{source}"\n')
        result = CliRunner().invoke(main, ["check", "-c", str(file)])
        assert result.exit_code == 0
        text = f"backend mta: source {source} is not an address of this machine now"
        assert (text in result.output) == warned


@pytest.mark.parametrize("backend", WRONG_BACKENDS)
def test_a_mistake_of_a_backend_is_reported_at_its_key(backend: str, keys: Path) -> None:
    (problem,) = found(keys, "", backend)
    assert problem.startswith("backends.mta.")
    assert_matches(WRONG_BACKENDS[backend], problem)


def test_contradictions_of_listener_and_backend_are_reported_at_a_key(keys: Path) -> None:
    (problem,) = found(keys, 'tls = "passthrough"', 'tls = "opportunistic"')
    assert_matches("tls needs tls", problem)
    unix = '[listeners.smtp]\naddress = "unix:/run/x.sock"'
    (problem,) = found(keys, 'proxy_protocol = ["10.0.0.0/8"]', address=unix)
    assert_matches("proxy_protocol is not used", problem)
    (problem,) = found(keys, "transparent = true", address=unix)
    assert_matches("transparent is not used", problem)


@pytest.mark.parametrize("identity", ["proxy-v1", "proxy-v2", "transparent"])
def test_clients_of_a_unix_socket_have_no_address_to_pass_on(identity: str, keys: Path) -> None:
    """The MTA would get the address of the proxy instead, for which it may relay."""
    unix = '[listeners.smtp]\naddress = "unix:/run/x.sock"'
    (problem,) = found(keys, "", f'identity = "{identity}"', address=unix)
    assert_matches(f'address is a Unix socket, .* its backend has identity = "{identity}"', problem)
    for none_needed in ("none", "xclient", "xforward"):
        assert found(keys, "", f'identity = "{none_needed}"', address=unix) == []


def test_a_mode_is_for_a_unix_socket(tmp_path: Path) -> None:
    unix = '[listeners.smtp]\naddress = "unix:/run/x.sock"'
    assert found(tmp_path, 'mode = "0660"', address=unix) == []
    (problem,) = found(tmp_path, 'mode = "0660"')
    assert_matches(r"listeners\.smtp\.mode is used for a Unix socket only", problem)
    (problem,) = found(tmp_path, 'mode = "rw"', address=unix)
    assert_matches("mode .*is not the mode of a file", problem)


@pytest.mark.parametrize(
    ("servers", "listener", "problem"),
    [
        ('["original"]', "", "transparent: must be true"),
        ('["original", "10.0.0.5:25"]', "transparent = true", "must be the only server"),
        (
            '["original"]\nhealth_check_interval = 5',
            "transparent = true",
            "health_check_interval: cannot be used",
        ),
        ('["unix:/x"]\nidentity = "transparent"', "", "servers: a Unix socket has no addresses"),
    ],
)
def test_original_servers_have_their_conditions(
    servers: str, listener: str, problem: str, tmp_path: Path
) -> None:
    file = tmp_path / "p.toml"
    file.write_text(f"{ADDRESS}\n{listener}\n[backends.mta]\nservers = {servers}\n")
    with pytest.raises(ConfigError, match=problem):
        load(file)


@pytest.mark.parametrize(
    ("listener", "identity", "warned"),
    [
        ("", "none", False),
        ('proxy_protocol = ["127.0.0.0/8"]', "none", True),
        ('proxy_protocol = ["127.0.0.0/8"]', "proxy-v2", False),
        ('xclient = ["127.0.0.0/8"]', "none", True),
        ("transparent = true", "none", True),
        ("transparent = true", "transparent", False),
        ('xclient = ["127.0.0.0/8"]', "xclient", False),
        ('address = "0.0.0.0:25"', "none", True),
        ('address = "0.0.0.0:25"', "xforward", True),
        ('address = "0.0.0.0:25"', "xclient", False),
        ('address = "0.0.0.0:25"', "transparent", False),
    ],
)
def test_an_mta_that_sees_only_the_proxys_address_is_worth_a_warning(
    listener: str, identity: str, warned: bool, tmp_path: Path
) -> None:
    file = tmp_path / "p.toml"
    first = "[listeners.smtp]" if "address" in listener else ADDRESS
    file.write_text(f'{first}\n{listener}\n{SERVERS}\nidentity = "{identity}"\n')
    assert bool(exposed_listeners(load(file))) == warned


def test_weak_tls_is_worth_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(
        f'{ADDRESS}\n{SERVERS}\ntls = "starttls"\nverify = false\nminimum_tls = "1.0"\n'
    )
    settings = load(file)
    assert [how for _, how in weak_backends(settings)] == [
        "TLS 1.0 is allowed",
        "its certificate is not verified",
    ]
    context = contexts.for_backend(settings.backends["mta"])
    assert context.minimum_version == contexts.VERSIONS["1.0"]


@pytest.mark.parametrize(
    ("lines", "reasons"),
    [
        ("", []),
        ('ciphers = "modern"', []),
        ('ciphers = "legacy"', ["old cipher suites and short keys are allowed"]),
        ('ciphers = "legacy"\nminimum_tls = "1.1"', ["TLS 1.1 is allowed"]),
    ],
)
def test_weak_tls_with_clients_is_worth_a_warning(
    lines: str, reasons: list[str], keys: Path
) -> None:
    file = keys / "p.toml"
    listener = f'{ADDRESS}\ntls = "starttls"\ncertificate = "@/mx.both"\n{lines}'
    file.write_text(f"{listener}\n{SERVERS}\n".replace("@", str(keys)))
    assert weak_listeners(load(file)) == [("smtp", each) for each in reasons]


def assert_matches(pattern: str, text: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)
