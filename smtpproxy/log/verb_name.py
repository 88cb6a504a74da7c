"""The name of an exchange's verb, as log and trace show it."""

from smtpproxy.core import verbs
from smtpproxy.core.exchange import Exchange
from smtpproxy.text.escaping import text_of

END_OF_DATA = "end_of_data"
"""The name of message content with its end of data."""
VERB_NAMES = {verb.name: verb.name.decode() for verb in verbs.ROWS}
VERB_NAMES[verbs.END_OF_DATA_ROW.name] = END_OF_DATA
"""Verb -> its name as text; most exchanges need no more."""


def verb_of(exchange: Exchange) -> str:
    """Return what an exchange is called; an unknown verb by its first word."""
    name = exchange.verb.name
    if name:
        return VERB_NAMES[name]
    role = verbs.NAMES_OF_ROLES.get(exchange.verb.role)
    if role:
        return role
    words = exchange.line.split(None, 1)
    return text_of(words[0][:32].upper()) if words else "malformed"
