"""The benchmark: smtpproxy compared with the alternatives, and its core alone."""
