"""The tests of smtpproxy, one package per layer."""
