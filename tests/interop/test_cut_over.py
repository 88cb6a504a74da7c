"""The handbook's cut-over by a redirect on the MTA's own host: on and off by one command each."""

import re
import shlex
from pathlib import Path

import pytest

from tests.interop.networks import MTA, MTA6, Networks, networks, talk
from tests.interop.peers import opensmtpd
from tests.support.processes import PreloadedProcess, Workplace

PAGE = (Path(__file__).parents[2] / "deploy" / "cut-over.md").read_text()
RULES = re.search(r"^    table inet .*?^    \}$", PAGE, re.MULTILINE | re.DOTALL)[0]
RUN, SWITCH, ROLL_BACK = (
    re.search(f"^    ({begin}.*?)(?:  +#.*)?$", PAGE, re.MULTILINE)[1]
    for begin in (r"smtpproxy run -l '\[::\]:2525'", "nft -f", "nft delete")
)


def offers_pipelining(row: Networks, host: str) -> bool:
    return "250 PIPELINING" in talk(row.client, host, ("EHLO client.example", "QUIT"))


@pytest.mark.long
def test_clients_are_switched_to_the_proxy_and_back() -> None:
    with (
        networks("cut") as row,
        opensmtpd(listen=(MTA, MTA6), machine=row.mta),
        Workplace("cut-over") as work,
    ):
        rules = work.write("cut-over.nft", RULES)
        run = shlex.split(RUN.replace("192.0.2.1", MTA))[1:]
        with PreloadedProcess(run, work.path / "log", network=row.mta.network):
            row.mta.await_listening(2525)
            for host in (MTA, MTA6):
                assert not offers_pipelining(row, host)
            row.mta.run(*SWITCH.replace("cut-over.nft", str(rules)).split())
            for host in (MTA, MTA6):
                assert offers_pipelining(row, host)
            row.mta.run(*ROLL_BACK.split())
            for host in (MTA, MTA6):
                assert not offers_pipelining(row, host)
