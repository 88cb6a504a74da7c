"""The desk: what the workers share beyond the sockets, and what they tell."""

from smtpproxy.control import Beat, FromWorker
from smtpproxy.figures import Totals
from smtpproxy.net import tally
from smtpproxy.supervisor.process import WorkerProcess


class Desk:
    """Made once for the service; crews come and go.

    memory: the descriptor of the tally.  totals: the figures of all workers.
    """

    def __init__(self) -> None:
        self.memory = tally.create()
        self.totals = Totals()
        self._free_rows = list(reversed(range(tally.ROWS)))

    def take_row(self) -> int:
        """Return a row of the tally that no worker has.

        Raises OSError if there is none: then hundreds of workers are still draining.
        """
        if not self._free_rows:
            raise OSError("too many workers are still draining")
        return self._free_rows.pop()

    def free_row(self, row: int) -> None:
        """Take back the row of a worker that is gone."""
        tally.Tally(self.memory, row).clear()
        self._free_rows.append(row)

    def said(self, worker: WorkerProcess, message: FromWorker) -> None:
        """Take what a worker tells, or asks for."""
        if isinstance(message, Beat):
            self.totals.take(worker.pid, message.figures)

    def ended(self, worker: WorkerProcess) -> None:
        """Follow the end of a worker."""
        self.totals.forget(worker.pid)
        self.free_row(worker.row)
