"""The flag `--fault`: `VERB ACTION [RATE] [FILTER...]` becomes a fault rule.

Faults are for tests, so no settings file can have any, and no reload brings one.
"""

import fnmatch
import re
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any, Final

from msgspec import Struct

from smtpproxy.config.address import canonical_network
from smtpproxy.config.decoding import ConfigError, Problem, instead, show
from smtpproxy.core.fault_rules import (
    FAULT_VERBS,
    WITH_RECIPIENT,
    WITH_SENDER,
    FaultAction,
    FaultRule,
)

EXAMPLE: Final = "for example: --fault 'RCPT 450 10% recipient=*@y.example'"
"""Added to the text of each problem."""
LONGEST_DELAY_S: Final = 3600.0
"""The longest delay of `delay:SECONDS`."""
_LONGEST = 500  # characters of a flag
_REPLY = b"%b %b.3.0 %%b Error: injected fault, a test of smtpproxy\r\n"
_ACTIONS: Final = tuple(
    action.value for action in FaultAction if action not in (FaultAction.REPLY, FaultAction.DELAY)
)


class Faults(Struct, frozen=True):
    """The flags `--fault` and `--fault-seed`."""

    flags: list[str] = []
    """The values of `--fault`, each of which `rule_of` can read."""
    seed: int = 0
    """Where the random decisions start; the same seed repeats them."""


NO_FAULTS: Final = Faults()
"""What a service without the flag has."""


def faults_from_flags(flags: Sequence[str], seed: int) -> Faults:
    """Return the faults that the flags describe.

    Raises:
        ConfigError: All problems.
    """
    problems = []
    for flag in flags:
        try:
            rule_of(flag)
        except ValueError as error:
            text = f"{show(flag)}: {error}; {EXAMPLE}"
            problems.append(Problem("", None, "--fault", text))
    if problems:
        raise ConfigError(problems)
    return Faults([" ".join(flag.split()) for flag in flags], seed)


def rule_of(flag: str) -> FaultRule:
    """Parse the value of a flag `--fault`.

    Raises:
        ValueError: It is not valid; the message names the word.
    """
    words = flag.split()
    if len(flag) > _LONGEST:
        raise ValueError(f"must have at most {_LONGEST} characters")
    if len(words) < 2:
        raise ValueError("must be VERB ACTION [RATE] [FILTER...]")
    verb = words[0].upper().encode()
    if verb not in FAULT_VERBS:
        raise ValueError(f"word 1, {show(words[0])}, is no verb; {_suggestion(words[0].upper())}")
    values = _action(words[1])
    for name, value in _rate_and_filters(words[2:], verb):
        if name in values:
            raise ValueError(f"has two of {name}")
        values[name] = value
    return FaultRule(" ".join(words), verb, **values)


def _suggestion(verb: str) -> str:
    known = [each.decode() for each in FAULT_VERBS]
    close = get_close_matches(verb, known, n=1)
    return f"did you mean {show(close[0])}?" if close else f"the verbs: {', '.join(known)}"


def _action(word: str) -> dict[str, Any]:
    if re.fullmatch(r"[0-9]+", word, re.ASCII):
        if not re.fullmatch(r"[45][0-5][0-9]", word, re.ASCII):
            why = "is no reply code of a refusal: 400 to 459 or 500 to 559, never a 2xx or 3xx"
            raise ValueError(f"word 2, {show(word)}, {why}")
        return {"action": FaultAction.REPLY, "reply": _REPLY % (word.encode(), word[:1].encode())}
    name, colon, text = word.partition(":")
    if name == FaultAction.DELAY.value:
        seconds = _number(text) if colon else None
        if seconds is None or not 0 < seconds <= LONGEST_DELAY_S:
            why = f"must be delay:SECONDS, with more than 0 and at most {LONGEST_DELAY_S:g}"
            raise ValueError(f"word 2, {show(word)}, {why}")
        return {"action": FaultAction.DELAY, "seconds": seconds}
    if word not in _ACTIONS:
        hint = instead(word, [*_ACTIONS, "delay:2", "450"], "the actions")
        raise ValueError(f"word 2, {show(word)}, is no action{hint}")
    return {"action": FaultAction(word)}


def _rate_and_filters(words: list[str], verb: bytes) -> Iterator[tuple[str, object]]:
    """Yield the name and the value of the rate and of each filter."""
    for position, word in enumerate(words, 3):
        name, equals, text = word.partition("=")
        try:
            if equals and name in _FILTERS:
                verbs, parse = _FILTERS[name]
                if verb not in verbs:
                    of = ", ".join(each.decode() for each in FAULT_VERBS if each in verbs)
                    raise ValueError(f"goes with {of} only")
                yield name, parse(text)
            elif equals:
                raise ValueError(f"is no filter{instead(name, _FILTERS, 'the filters')}")
            else:
                yield "rate", _rate(word)
        except ValueError as error:
            raise ValueError(f"word {position}, {show(word)}, {error}") from None


def _rate(word: str) -> float:
    if word.endswith("%"):
        percent = _number(word[:-1])
        rate = None if percent is None else percent / 100
    else:
        one, _, of = word.partition("/")
        parts = [int(each) if each.isascii() and each.isdigit() else 0 for each in (one, of)]
        rate = parts[0] / parts[1] if parts[1] else None
    if rate is None or not 0 < rate <= 1:
        raise ValueError("is no rate: write 10% or 1/20, more than 0 and at most 100%")
    return rate


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text, re.ASCII) else None


def _pattern(text: str) -> re.Pattern[str]:
    if not text:
        raise ValueError("needs a pattern, such as *@x.example, or <> for the null sender")
    address = text.removeprefix("<").removesuffix(">")
    literal = address.replace("[", "[[]")  # a domain may be an address: user@[192.0.2.1]
    return re.compile(fnmatch.translate(literal), re.IGNORECASE)


_EVERY: Final = frozenset(FAULT_VERBS)
_FILTERS: Final[dict[str, tuple[frozenset[bytes], Callable[[str], object]]]] = {
    "client": (_EVERY, canonical_network),
    "sender": (WITH_SENDER, _pattern),
    "recipient": (WITH_RECIPIENT, _pattern),
}
