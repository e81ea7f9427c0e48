from __future__ import annotations

import json
import shlex
import unicodedata

import pytest

from persona.names import command_line, describe, escape_json, hidden, legible

NAMES = [
    "Ann",
    "Zoë",
    "Jean\u00a0Paul",  # no break between them
    "李小龙",
    "葛\U000e0100城",  # the variant that the register has
    "نیک\u200cنام",
    "علی\u200cرضا",
    "क्\u200dष",
    "क्\u200c",
    "র\u200d্যাব",
    "ශ්\u200dරී",
    "ᠮᠣᠩ\u180bᠭᠣᠯ",
    "👩‍🚀",
    "👩🏽‍🚒",
    "🧔‍♂️",
    "❤️‍🔥",
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "1️⃣",
    "김민준",
    "מֹשֶׁה",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_people_have(name: str) -> None:
    assert hidden(name) is None
    assert legible(name) == name


HIDDEN = [
    *(0x00, 0x0A, 0x1B, 0x7F, 0x85, 0x9B),
    *(0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180E),
    *range(0x200B, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2060, 0x2070),
    *(0x2800, 0x3164, 0xFE0E, 0xFE0F, 0xFEFF, 0xFFA0, 0xFFF0, 0xFFF9, 0xFFFE, 0xFDD0),
    *(0xE000, 0x1D159, 0x1D173, 0xE0001, 0xE0041, 0xE0100, 0xE0FFF, 0x10FFFF, 0xDC80),
]


@pytest.mark.parametrize("number", HIDDEN, ids=[f"{number:04X}" for number in HIDDEN])
@pytest.mark.parametrize("text", ["An{}n", "{}Ann", "Ann{}", "{}"])
def test_what_is_not_seen_but_acted_on(number: int, text: str) -> None:
    character = chr(number)
    assert hidden(text.format(character)) == character
    shown = legible(text.format(character))
    assert character not in shown
    assert shown == text.format(character.encode("unicode_escape").decode())


@pytest.mark.parametrize(
    "text",
    [
        "A\u200dB",
        "علی\u200c",
        "\u200cعلی",
        "علی\u200c\u200cرضا",
        "علی\u200cAnn",
        "👩\u200d",
        "Ann\U000e0041\U000e007f",
        "🏴\U000e0067\U000e0062",
        "a\ufe0f",
        "🙂\ufe0f\ufe0f",
        "a\u180b",
    ],
)
def test_joiners_where_nothing_takes_them(text: str) -> None:
    assert hidden(text) is not None
    assert legible(text).isprintable() or hidden(legible(text)) is None


def test_every_format_character_is_known() -> None:
    for number in range(0x110000):
        if unicodedata.category(chr(number)) in {"Cc", "Cf", "Zl", "Zp", "Cs", "Co"}:
            assert hidden(f"a{chr(number)}b") is not None, f"{number:04X}"
        if unicodedata.category(chr(number)) in {"Ll", "Lu", "Nd", "Zs", "Pd"}:
            assert hidden(f"a{chr(number)}b") is None, f"{number:04X}"


def test_how_a_character_is_called() -> None:
    assert describe("\u200b") == "U+200B ZERO WIDTH SPACE"
    assert describe("\x1b") == "U+001B control character"


def test_a_command_is_copied_as_it_is_meant() -> None:
    words = ["shard", "folders:/data/My Photos; $(reboot)", "--triplets", "a-1"]
    assert shlex.split(command_line(*words)) == ["persona", *words]
    assert command_line("targets", "lfw", "--teacher", "onnx:a/b.onnx") == (
        "persona targets lfw --teacher onnx:a/b.onnx"  # quoted only where it must be
    )


def test_json_keeps_its_value() -> None:
    value = {"names": [*NAMES, *(f"a{chr(n)}b" for n in HIDDEN), 'quo"te\\', "tab\tline\n"]}
    document = json.dumps(value, indent=2, ensure_ascii=False)
    shown = escape_json(document)
    assert json.loads(shown) == value
    assert all(hidden(line) is None for line in shown.splitlines())
    assert "李小龙" in shown
