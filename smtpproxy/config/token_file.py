"""The files of the admin token and of a password; no message quotes their content."""

import os
import stat

from smtpproxy.config.schema import read_token

_MOST_BYTES = 4096
_FOR_OTHERS = stat.S_IWGRP | stat.S_IRWXO


def read(path: str) -> str:
    """Return the token in a file, without surrounding white space.

    Raises:
        ValueError: As `read_secret`, or the file does not hold a token.
    """
    text = read_secret(path, "token")
    try:
        return read_token(text)
    except ValueError as error:
        raise ValueError(f"holds a token that {error}") from None


def read_secret(path: str, kind: str) -> str:
    """Return the text in a file, without surrounding white space.

    Args:
        path: The file.
        kind: What it is, such as `token`, for the message.

    Raises:
        ValueError: The file cannot be read or is not safe for a secret; worded to follow the name
            of the setting.
    """
    try:
        text = _read_text(path)
    except OSError as error:
        raise ValueError(f"cannot be read: {(error.strerror or 'unreadable').lower()}") from None
    except UnicodeDecodeError:
        raise ValueError("is not text") from None
    if not text:
        raise ValueError(f"is empty; write the {kind} into it")
    return text


def why_exposed(mode: int) -> str:
    """Return why a file with this mode is not safe for a secret; empty if it is."""
    if not mode & _FOR_OTHERS:
        return ""
    shown = f"{stat.S_IMODE(mode):04o}"
    return f"has the mode {shown}: other accounts can read or change it; chmod 0640 or 0600"


def _read_text(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError("is not a file")
        if why := why_exposed(mode):
            raise ValueError(why)
        return os.read(descriptor, _MOST_BYTES).decode().strip()
    finally:
        os.close(descriptor)
