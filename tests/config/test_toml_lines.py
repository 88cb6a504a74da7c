"""The line of a settings file in which a key is."""

from smtpproxy.config.toml_lines import find_lines, line_of


class TestPlaces:
    def test_tables_in_arrays_in_tables(self) -> None:
        text = '[[a]]\n[[a.b]]\nx = 1\n[[a.b]]\ny.z = """\n]\n"""\n[[a]]\n[a.c]\nw = {v = 1}\n'
        lines_of_keys = find_lines(text)
        assert lines_of_keys["a", 0, "b", 0, "x"] == 3
        assert lines_of_keys["a", 0, "b", 1] == 4
        assert lines_of_keys["a", 0, "b", 1, "y", "z"] == 5
        assert lines_of_keys["a", 1] == 8
        assert lines_of_keys["a", 1, "c", "w", "v"] == 10

    def test_a_missing_key_has_the_line_of_its_table(self) -> None:
        lines_of_keys = find_lines("\n[a]\nb = 1\n")
        assert line_of(("a", "missing", 3), lines_of_keys) == 2
        assert line_of(("z",), lines_of_keys) is None
        assert line_of((), lines_of_keys) is None
