"""Makes deploy/reference/trace.md: the records of trace files and their fields."""

import ast
import inspect
import re
import typing

from markdown import code, page, table

from smtpproxy.trace import records, statistics

_INTRODUCTION = f"""\
Each line of a trace file is a JSON object; `what` is the kind of record. The first line of a file
is its header with the version of the records, {records.VERSION}; `smtpproxy trace` refuses files of
another version. What the log has too has the same name and meaning: deploy/reference/events.md.

Moments are seconds since 1970, of one clock that never goes back within a worker; 0 or left out: it
has not happened. Fields with their default value are left out. Text from clients and the MTA is
UTF-8 with other bytes as `\\xNN`; `\\=` begins a text that is base64.
"""
_TYPES = {
    "Moment": "moment",
    "Seconds": "seconds",
    "Count": "whole number",
    "Code": "whole number",
    "Port": "whole number",
    "int": "whole number",
    "bool": "true or false",
    "Violation": "violation",
    "Sequence[Step]": "list of steps",
    "list[Transaction]": "list of transactions",
    "list[Name]": "list of texts",
    "list[Code]": "list of whole numbers",
    "list[Count]": "list of whole numbers",
}


_TYPES |= {"int": "whole number", "float": "number"}
_STATISTICS = f"""\
## Statistics

`smtpproxy trace stats --json` prints one JSON object in ASCII, of version {statistics.VERSION}.
Every text of a peer in it is escaped as on a terminal.
"""
_STATISTICS_KINDS = (
    statistics.Statistics,
    statistics.MessageCount,
    statistics.VerbTimes,
    statistics.SlowReply,
    statistics.SavedTime,
    statistics.ReplyCount,
    statistics.TextCount,
    statistics.Clients,
    statistics.ClientCount,
    statistics.TlsCount,
    statistics.GroupCount,
)


def trace_page() -> str:
    """Return the page."""
    parts = [_INTRODUCTION]
    for kind in (records.FileHeader, *typing.get_args(records.Record)):
        parts += [f"## {code(kind.__struct_config__.tag)}\n", *_described(kind)]
    for kind in (records.Transaction, records.Violation, records.Step):
        parts += [f"## A {kind.__name__.lower()}\n", *_described(kind)]
    parts.append(_STATISTICS)
    for kind in _STATISTICS_KINDS:
        parts += [f"### {_words_of(kind)}\n", *_described(kind)]
    return page("Trace records", parts)


def _words_of(kind: type) -> str:
    """Return the name of a class in words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__).capitalize().replace("Tls", "TLS")


def _described(kind: type) -> list[str]:
    """Return what a record is, and its fields, from its source."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    rows = [
        (code(field.target.id), _type_of(field.annotation), _text_of(description))
        for field, description in zip(definition.body, definition.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    ]
    about = inspect.getdoc(kind) or ""
    return [about + "\n", table(("field", "type", "meaning"), rows)]


def _type_of(annotation: ast.expr) -> str:
    name = ast.unparse(annotation)
    if name.startswith("Annotated["):
        assert isinstance(annotation, ast.Subscript)
        assert isinstance(annotation.slice, ast.Tuple)
        name = ast.unparse(annotation.slice.elts[0])
    name, _, optional = name.partition(" | ")
    or_null = " or null" if optional and name != "Violation" else ""
    if (listed := name.removeprefix("list[").removesuffix("]")) != name and name not in _TYPES:
        return f"list: {_words_of(getattr(statistics, listed)).lower()}"
    if isinstance(kind := getattr(statistics, name, None), type):
        return _words_of(kind).lower()
    return _TYPES.get(name, "text") + or_null


def _text_of(description: ast.stmt) -> str:
    assert isinstance(description, ast.Expr)
    assert isinstance(description.value, ast.Constant)
    return " ".join(str(description.value.value).split())
