"""Tests of the demonstration: the legacy MTA, the network, the dialogues and the whole of it."""
