"""`python -m smtpproxy` is the command `smtpproxy`."""

import sys


def main() -> None:
    """Run the command line."""
    if sys.argv[1:2] == ["health"]:  # asked every few seconds: without what others load
        from smtpproxy.control_socket.health_command import health

        health(sys.argv[2:], prog_name="smtpproxy health")
    from smtpproxy import cli

    cli.main(prog_name="smtpproxy")


if __name__ == "__main__":
    main()
