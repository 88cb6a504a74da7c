"""The RFC 2920 demonstration: an embedded legacy MTA, a simulated network, and their time lines."""
