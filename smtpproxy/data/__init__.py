"""The example files in the wheel, which `smtpproxy example NAME` prints.

This directory is their only source: `deploy/` refers to it, and packages install from it.
"""

from importlib.resources import files
from types import MappingProxyType

from msgspec import Struct


class Example(Struct, frozen=True):
    """An example file."""

    file: str
    """Its path in this directory."""
    purpose: str
    """What it is for, for the help text."""


EXAMPLES = MappingProxyType(
    {
        "config": Example("smtpproxy.toml", "settings, for /etc/smtpproxy/smtpproxy.toml"),
        "service": Example("smtpproxy.service", "systemd unit of the service"),
        "socket": Example("smtpproxy.socket", "systemd unit of its socket, port 25"),
        "prometheus-rules": Example("prometheus/rules.yml", "alerting rules for Prometheus"),
        "grafana": Example("grafana/smtpproxy.json", "dashboard for Grafana"),
        "fail2ban": Example("fail2ban/smtpproxy.conf", "fail2ban filter, and a jail for it"),
        "keepalived": Example(
            "keepalived/keepalived.conf", "keepalived: one address for two machines"
        ),
        "keepalived-standby": Example(
            "keepalived/standby.nft", "keepalived: planned work, rules of the standby machine"
        ),
        "keepalived-drain": Example(
            "keepalived/drain.nft", "keepalived: planned work, rules of the active machine"
        ),
        "haproxy": Example("haproxy/haproxy.cfg", "HAProxy in front of two machines"),
        "config-haproxy": Example("haproxy/smtpproxy.toml", "HAProxy in front: settings"),
        "nftables": Example("transparent/tproxy.nft", "transparent proxy: rules (TPROXY)"),
        "nftables-redirect": Example(
            "transparent/redirect.nft", "transparent proxy: simpler rules (REDIRECT)"
        ),
        "routes": Example("transparent/routes.sh", "transparent proxy: routes for TPROXY"),
        "config-transparent": Example("transparent/smtpproxy.toml", "transparent proxy: settings"),
    }
)


def read_example(name: str) -> str:
    """Return the text of an example; `name` is a key of `EXAMPLES`."""
    return (files(__name__) / EXAMPLES[name].file).read_text()
