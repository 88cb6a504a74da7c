"""Places: in which line of a settings file a key stands."""

from smtpproxy.config.toml_lines import find_places, line_of


class TestPlaces:
    def test_tables_in_arrays_in_tables(self) -> None:
        text = '[[a]]\n[[a.b]]\nx = 1\n[[a.b]]\ny.z = """\n]\n"""\n[[a]]\n[a.c]\nw = {v = 1}\n'
        places = find_places(text)
        assert places["a", 0, "b", 0, "x"] == 3
        assert places["a", 0, "b", 1] == 4
        assert places["a", 0, "b", 1, "y", "z"] == 5
        assert places["a", 1] == 8
        assert places["a", 1, "c", "w", "v"] == 10

    def test_what_is_not_written_is_at_what_holds_it(self) -> None:
        places = find_places("\n[a]\nb = 1\n")
        assert line_of(("a", "missing", 3), places) == 2
        assert line_of(("z",), places) is None
        assert line_of((), places) is None
