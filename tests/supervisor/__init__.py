"""Tests of the supervisor: the whole program, with its workers, as an operator runs it."""
