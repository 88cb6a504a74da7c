"""Runs the command `smtpproxy` for `python -m smtpproxy`."""

import gc
import sys


def main() -> None:
    """Run the command line."""
    # Modules are permanent; searching them for garbage takes a fifth of the start.
    gc.set_threshold(10_000, 20, 50)
    if sys.argv[1:2] == ["health"]:  # runs every few seconds, so it loads few modules
        from smtpproxy.control_socket.health_command import health

        health(sys.argv[2:], prog_name="smtpproxy health")
    from smtpproxy import cli

    gc.freeze()
    cli.main(prog_name="smtpproxy")


if __name__ == "__main__":
    main()
