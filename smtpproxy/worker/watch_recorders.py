"""The running watches of one worker: each is a trace recorder that sends to the supervisor.

A watch records the sessions that begin after it.  When it ends, open sessions are no longer
recorded either.
"""

from collections.abc import Callable, Sequence

from msgspec import Raw

from smtpproxy.config.schema import TraceSettings
from smtpproxy.trace import watch
from smtpproxy.trace.content_capture import CaptureMode
from smtpproxy.trace.record_writer import Later, Lines
from smtpproxy.trace.recorder import Network, TraceRecorder
from smtpproxy.trace.watch import WatchRequest
from smtpproxy.worker.observer_fanout import ObserverFanout

Send = Callable[[int, Sequence[Raw], int], bool]
"""Sends records of a watch, and how many were lost before; returns whether there was room."""


class WatchRecorders:
    """Begins and ends watches.

    Args:
        settings: The settings `trace`, which limit what a watch may record.
        networks: The setting `trace.networks`.
        observer: The observer of the worker, which gets a recorder for each watch.
        later: Calls a function soon.
    """

    def __init__(
        self,
        settings: TraceSettings,
        networks: Sequence[Network],
        observer: ObserverFanout,
        later: Later,
    ) -> None:
        self._send: Send = _send_nothing
        self._settings = settings
        self._networks = networks
        self._observer = observer
        self._later = later
        self._recorders: dict[int, TraceRecorder] = {}

    def send_with(self, send: Send) -> None:
        """Set what sends records to the supervisor."""
        self._send = send

    def begin(self, number: int, request: WatchRequest) -> None:
        """Record as requested, but no more content than the settings allow; report that it began.

        After a reload the settings may be others than those by which the request was accepted.
        """
        if number in self._recorders:
            return
        settings = self._settings
        is_refused = watch.why_not(request, settings.content, self._networks)
        recorder = TraceRecorder(
            WatchSink(number, self._send, self._later),
            self._later,
            only_errors=request.only_problems,
            networks=request.clients(),
            kept=CaptureMode.NONE if is_refused else CaptureMode(request.content),
            most=min(settings.max_content, watch.CONTENT_OCTETS),
        )
        self._recorders[number] = recorder
        self._observer.add(recorder)
        self._send(number, (), 0)

    def end(self, number: int) -> None:
        """Record no more."""
        recorder = self._recorders.pop(number, None)
        if recorder is not None:
            self._observer.remove(recorder)

    def close(self) -> None:
        """Send what is left, as the worker ends."""
        for recorder in self._recorders.values():
            recorder.close()


class WatchSink:
    """Takes the lines of a watch, and drops and counts what there is no room for.

    Args:
        number: The number of the watch.
        send: Sends records.
        later: Calls a function soon.
    """

    lost = 0
    """Always 0: the watch itself shows what is lost, so no worker logs it."""
    why = ""

    def __init__(self, number: int, send: Send, later: Later) -> None:
        self._number = number
        self._send = send
        self._later = later
        self._unsent = 0

    def write(self, parts: list[Lines], lines: int, _size: int) -> None:
        """Send whole lines."""
        octets = b"".join(each if isinstance(each, bytes) else each() for each in parts)
        records = [Raw(each) for each in octets.split(b"\n")[:-1]]
        had_unsent = self._unsent > 0
        self._unsent = (
            0 if self._send(self._number, records, self._unsent) else self._unsent + lines
        )
        if self._unsent and not had_unsent:
            self._later(self._send_unsent)

    def _send_unsent(self) -> None:
        """Send how many lines were dropped, if no record has come after them."""
        if self._unsent and not self._send(self._number, (), self._unsent):
            self._later(self._send_unsent)
        else:
            self._unsent = 0

    def close(self) -> None:
        """Do nothing: the control channel sends what is left."""


def _send_nothing(_number: int, _records: Sequence[Raw], _lost: int) -> bool:
    return True
