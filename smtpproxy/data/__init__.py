"""Data: the example files that ship in the wheel; `smtpproxy example NAME` prints one.

This directory is their only source: `deploy/` refers to it, and packages install from it.
"""

from importlib.resources import files
from types import MappingProxyType

from msgspec import Struct


class Example(Struct, frozen=True):
    """A file of this directory, and what it is for."""

    file: str
    purpose: str


EXAMPLES = MappingProxyType(
    {
        "config": Example("smtpproxy.toml", "settings, for /etc/smtpproxy/smtpproxy.toml"),
        "service": Example("smtpproxy.service", "systemd unit of the service"),
        "socket": Example("smtpproxy.socket", "systemd unit of its socket, port 25"),
        "prometheus-rules": Example("prometheus/rules.yml", "alerting rules for Prometheus"),
        "grafana": Example("grafana/smtpproxy.json", "dashboard for Grafana"),
        "fail2ban": Example("fail2ban/smtpproxy.conf", "fail2ban filter, and a jail for it"),
        "nftables": Example("transparent/tproxy.nft", "transparent proxy: rules (TPROXY)"),
        "nftables-redirect": Example(
            "transparent/redirect.nft", "transparent proxy: simpler rules (REDIRECT)"
        ),
        "routes": Example("transparent/routes.sh", "transparent proxy: routes for TPROXY"),
        "config-transparent": Example("transparent/smtpproxy.toml", "transparent proxy: settings"),
    }
)


def read_example(name: str) -> str:
    """Return the text of the example `name`."""
    return (files(__name__) / EXAMPLES[name].file).read_text()
