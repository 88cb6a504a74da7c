"""The command `smtpproxy probe`: tests a mail server and prints settings for it."""
