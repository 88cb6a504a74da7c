"""The command `smtpproxy demo`: RFC 2920 dialogues with an embedded legacy MTA, drawn."""
