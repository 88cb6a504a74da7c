"""The benchmark: smtpproxy beside what a user would pick instead, and its core alone."""
