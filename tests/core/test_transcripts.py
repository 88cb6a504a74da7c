"""All transcripts, played as written and with every segment cut into single octets."""

import pytest

from tests.support.transcript import Dialogue, play, read_all

DIALOGUES = read_all()


@pytest.mark.parametrize("dialogue", DIALOGUES, ids=lambda dialogue: dialogue.name)
def test_dialogue_as_written(dialogue: Dialogue) -> None:
    play(dialogue)


@pytest.mark.long
@pytest.mark.parametrize(
    "dialogue",
    [dialogue for dialogue in DIALOGUES if not dialogue.depends_on_segments],
    ids=lambda dialogue: dialogue.name,
)
def test_dialogue_octet_by_octet(dialogue: Dialogue) -> None:
    play(dialogue, octet_by_octet=True)


def test_names_of_dialogues_are_unique() -> None:
    names = [dialogue.name for dialogue in DIALOGUES]
    assert len(set(names)) == len(names)
