"""The flag --fault."""

import re

import pytest

from smtpproxy.config.decoding import ConfigError
from smtpproxy.config.fault_flag import Faults, faults_from_flags, rule_of
from smtpproxy.core.fault_rules import FAULT_VERBS, FaultAction


@pytest.mark.parametrize(
    ("flag", "verb", "action", "rate"),
    [
        ("RCPT 450", b"RCPT", FaultAction.REPLY, 1),
        ("rcpt 559 10%", b"RCPT", FaultAction.REPLY, 0.1),
        ("END_OF_DATA close-after 1/20", b"END_OF_DATA", FaultAction.CLOSE_AFTER, 0.05),
        ("CONNECT delay:0.5 100%", b"CONNECT", FaultAction.DELAY, 1),
        ("MAIL stall 0.5%", b"MAIL", FaultAction.STALL, 0.005),
        ("EHLO reset 1/1", b"EHLO", FaultAction.RESET, 1),
    ],
)
def test_verb_action_and_rate(flag: str, verb: bytes, action: FaultAction, rate: float) -> None:
    rule = rule_of(flag)
    assert (rule.verb, rule.action, rule.rate) == (verb, action, rate)


def test_filters_come_in_any_order() -> None:
    rule = rule_of("RCPT delay:2 recipient=*@Y.example client=::ffff:192.0.2.0/120 10% sender=<>")
    assert str(rule.client) == "192.0.2.0/24"
    assert rule.sender is not None
    assert rule.recipient is not None
    assert rule.sender.match("")
    assert not rule.sender.match("a@x")
    assert rule.recipient.match("b@y.EXAMPLE")
    assert not rule.recipient.match("b@y.example.org")
    assert (rule.rate, rule.seconds) == (0.1, 2)


@pytest.mark.parametrize(
    ("pattern", "address", "matches"),
    [
        ("*@[192.0.2.1]", "joe@[192.0.2.1]", True),
        ("*@[192.0.2.1]", "joe@1", False),
        ("joe+[ab]@x.example", "joe+a@x.example", False),
        ("j?e@x.example", "JOE@x.example", True),
        ("<>", "", True),
        ("<>", "joe@x.example", False),
    ],
)
def test_only_the_asterisk_and_the_question_mark_stand_for_other_characters(
    pattern: str, address: str, matches: bool
) -> None:
    rule = rule_of(f"RCPT 450 recipient={pattern}")
    assert rule.recipient is not None
    assert bool(rule.recipient.match(address)) is matches


def test_a_reply_is_a_refusal_with_the_name_of_the_proxy() -> None:
    for code in range(600):
        try:
            rule = rule_of(f"RCPT {code}")
        except ValueError:
            assert code not in range(400, 460)
            assert code not in range(500, 560)
            continue
        assert re.fullmatch(rb"%d [45]\.3\.0 mx Error: .*\r\n" % code, rule.reply % b"mx")


@pytest.mark.parametrize("verb", FAULT_VERBS)
def test_each_verb_can_be_named(verb: bytes) -> None:
    assert rule_of(f"{verb.decode()} close").verb == verb


@pytest.mark.parametrize(
    ("flag", "problem"),
    [
        ("", "must be VERB ACTION [RATE] [FILTER...]"),
        ("RCPT", "must be VERB ACTION [RATE] [FILTER...]"),
        ("RCTP 450", 'word 1, "RCTP", is no verb; did you mean "RCPT"?'),
        ("PROXY 450", 'word 1, "PROXY", is no verb; the verbs: CONNECT, MAIL, '),
        (
            "RCPT 250",
            'word 2, "250", is no reply code of a refusal: 400 to 459 or 500 to 559, never a 2xx',
        ),
        ("DATA 354", 'word 2, "354", is no reply code of a refusal'),
        ("DATA 4500", 'word 2, "4500", is no reply code of a refusal'),
        ("DATA \uff14\uff15\uff10", "is no action"),
        ("RCPT clos", 'word 2, "clos", is no action; did you mean "close"?'),
        ("RCPT reply", 'word 2, "reply", is no action'),
        ("RCPT delay", 'word 2, "delay", must be delay:SECONDS'),
        ("RCPT delay:0", 'word 2, "delay:0", must be delay:SECONDS, with more than 0'),
        ("RCPT delay:nan", 'word 2, "delay:nan", must be'),
        ("RCPT delay:1e9", 'word 2, "delay:1e9", must be'),
        ("RCPT delay:3601", "at most 3600"),
        ("RCPT 450 0%", 'word 3, "0%", is no rate: write 10% or 1/20'),
        ("RCPT 450 101%", 'word 3, "101%", is no rate'),
        ("RCPT 450 1/0", 'word 3, "1/0", is no rate'),
        ("RCPT 450 3/2", 'word 3, "3/2", is no rate'),
        ("RCPT 450 %", 'word 3, "%", is no rate'),
        ("RCPT 450 x", 'word 3, "x", is no rate'),
        ("RCPT 450 10% 20%", "has two of rate"),
        ("RCPT 450 sender=a sender=b", "has two of sender"),
        ("RCPT 450 client=x", 'word 3, "client=x", is not a network; write, for example,'),
        ("RCPT 450 10% sendr=x", 'word 4, "sendr=x", is no filter; did you mean "sender"?'),
        ("RCPT 450 recipient=", 'word 3, "recipient=", needs a pattern, such as *@x.example'),
        ("MAIL 450 recipient=x", 'word 3, "recipient=x", goes with RCPT, DATA, BDAT, END_OF_DATA'),
        ("NOOP 450 sender=x", 'word 3, "sender=x", goes with MAIL, RCPT, DATA, BDAT, END_OF_DATA'),
        ("RCPT 450 sender=" + "x" * 500, "must have at most 500 characters"),
    ],
)
def test_a_mistake_is_shown_with_its_place_and_an_example(flag: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        faults_from_flags([flag, "RCPT 450"], 1)
    (found,) = caught.value.problems
    assert found.key == "--fault"
    assert problem in found.text
    assert found.text.endswith("; for example: --fault 'RCPT 450 10% recipient=*@y.example'")


def test_all_mistakes_are_shown_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        faults_from_flags(["RCPT \x1b[2J", "X 450"], 1)
    assert len(caught.value.problems) == 2
    assert "\x1b" not in str(caught.value)


def test_the_flags_are_kept_with_single_spaces() -> None:
    assert faults_from_flags([" RCPT  450 "], 7) == Faults(["RCPT 450"], 7)
