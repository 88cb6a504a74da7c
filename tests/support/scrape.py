"""Reads values from /metrics."""

import re
import urllib.request

_SAMPLE = re.compile(r"^smtpproxy_(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


def scrape(address: str) -> str:
    """Return the text of /metrics at the admin address."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
        return page.read().decode()


def total(text: str, name: str, **labels: str) -> float | None:
    """Return the sum of all samples of a metric with these labels; None if there is none."""
    wanted = {f'{label}="{value}"' for label, value in labels.items()}
    found = [
        float(number)
        for sample, inside, number in _SAMPLE.findall(text)
        if sample == name and wanted <= set(inside.split(","))
    ]
    return sum(found) if found else None
