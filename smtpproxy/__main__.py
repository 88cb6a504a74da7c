"""`python -m smtpproxy` is the command `smtpproxy`."""

from smtpproxy.cli import main

if __name__ == "__main__":
    main(prog_name="smtpproxy")
