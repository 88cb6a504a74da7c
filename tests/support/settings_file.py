"""A settings file for tests of the loader."""

from pathlib import Path

GOOD = """\
[listeners.smtp]
address = "127.0.0.1:2525"

[backends.old]
servers = ["10.0.0.5:25"]
"""


def write(directory: Path, text: str | bytes) -> Path:
    path = directory / "p.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path
