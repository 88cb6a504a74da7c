"""`smtpproxy health`: asks the running service whether it is healthy.

Load balancers and containers run it every few seconds, so it loads as little as possible
(see `smtpproxy.__main__`).
"""

import os
import sys
from pathlib import Path

import click

from smtpproxy.control_socket import control_client, locations
from smtpproxy.text.escaping import printable


@click.command(
    # As those of `smtpproxy`, which it does not get when `smtpproxy.__main__` runs it.
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    short_help="Ask the running service whether it is healthy, or ready for clients.",
    epilog="""
    \b
    Examples:
      smtpproxy health
      smtpproxy health --ready || echo "no mail through this host"
    """,
)
@click.option("--ready", is_flag=True, help="Ask whether clients can be served.")
@locations.control_option
def health(*, ready: bool, control: Path | None) -> None:
    """Ask the service on this machine whether it is healthy.

    Prints one line, and exits 0 if it is; else 1, also if there is no service or no answer within
    5 seconds.
    """
    socket_paths = [control] if control else locations.of_commands(os.environ)
    try:
        status, text = control_client.ask("/readyz" if ready else "/healthz", socket_paths)
    except control_client.NoAnswer as error:
        click.echo(f"smtpproxy: {printable(str(error))}", err=True)
        sys.exit(1)
    click.echo(printable(text))  # text.console would load rich
    sys.exit(0 if status == 200 else 1)
