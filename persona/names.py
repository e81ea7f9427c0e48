"""Finds and escapes hidden characters in text from elsewhere.

Two names that differ in a hidden character look the same. A character that turns the writing
direction makes a line read as something that it is not. A character counts as hidden by its Unicode
category. Unicode lists a few blank characters as letters, marks or symbols; they are listed here.

Some scripts and emoji use invisible joiners, selectors and tags. These belong to a name if their
neighbours use them (for joiners as in RFC 5892, appendix A), and are hidden anywhere else.
"""

from __future__ import annotations

import re
import shlex
import unicodedata

_KIND = re.compile(r"\s*[a-z][\w-]+:(?!//)")
"""The kind before a path, as in `onnx:FILE` or `folders:PATH`."""
_ITEM = re.compile(r"\s*([A-Za-z][\w+-]*:|(~\w*|\.{0,2})[/\\])|[^/\\]*$")
"""The beginning of a name in a list: a kind, an address or drive, a path from the root, the home
folder or the current one, or a name without a folder."""
_CATEGORIES = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})
_BLANK = frozenset(
    map(
        chr,
        (
            0x034F,  # combining grapheme joiner
            *(0x115F, 0x1160, 0x3164, 0xFFA0),  # Hangul fillers
            *(0x17B4, 0x17B5),  # Khmer inherent vowels
            *(0x2065, *range(0xFFF0, 0xFFF9)),  # unassigned and invisible
            0x2800,  # Braille pattern without dots
            0x1D159,  # musical note without a head
            0x133FC,  # blank hieroglyph
        ),
    )
)
_JOINERS = frozenset("\u200c\u200d")
_VARIANTS = frozenset(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
_MONGOLIAN_VARIANTS = frozenset("\u180b\u180c\u180d\u180e\u180f")
_JOINED_SCRIPTS = frozenset(
    (
        *("ADLAM", "ARABIC", "BALINESE", "BENGALI", "BRAHMI", "CHAKMA"),
        *("DEVANAGARI", "GRANTHA", "GUJARATI", "GURMUKHI", "HANIFI", "JAVANESE"),
        *("KAITHI", "KANNADA", "KHMER", "LEPCHA", "LIMBU", "MALAYALAM"),
        *("MANDAIC", "MANICHAEAN", "MONGOLIAN", "MYANMAR", "NEWA", "NKO"),
        *("ORIYA", "PHAGS-PA", "SHARADA", "SINHALA", "SOGDIAN", "SYRIAC"),
        *("TAI", "TAMIL", "TELUGU", "TIBETAN", "TIRHUTA"),
    )
)
"""First words of the Unicode names of letters in scripts that use joiners."""
_VIRAMA = 9
"""Canonical combining class of a virama."""
_FLAG = re.compile("\U0001f3f4[\U000e0020-\U000e007e]{1,6}\U000e007f")
"""Flags such as England's: a black flag, then the region in tag characters."""


def composed(text: str) -> str:
    """A text in Unicode's composed form (NFC), so that equal names are equal strings.

    Files from a Mac have `é` as two characters.
    """
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def command_line(*words: object) -> str:
    """The command `persona WORDS` to be copied into a shell, which cuts and runs none of the words.

    A path may have blanks, and one from elsewhere whatever else a shell would act on.
    """
    return shlex.join(["persona", *map(str, words)])


def hidden(text: str) -> str | None:
    """The first hidden character of a text, which is invisible or looks blank. None if none is."""
    places = _hidden_places(text)
    return text[places[0]] if places else None


def describe(character: str) -> str:
    """The code point and Unicode name of a character, such as `U+200B ZERO WIDTH SPACE`."""
    name = unicodedata.name(character, "control character")
    return f"U+{ord(character):04X} {name}"


def legible(text: str) -> str:
    """A text in one line, with hidden characters escaped as in Python. Tabs are kept."""
    if text.isascii() and text.isprintable():
        return text
    shown = list(text)
    for place in _hidden_places(text):
        if shown[place] != "\t":
            shown[place] = escaped(shown[place])
    return "".join(shown)


def escaped(character: str) -> str:
    r"""The escape sequence of a character, such as `\u200b`."""
    return character.encode("unicode_escape").decode()


def escape_json(document: str) -> str:
    """An equal JSON document in which characters that could control a terminal are escaped."""
    if document.isascii() and "\x7f" not in document:
        return document
    return "".join(
        character if character in "\n\t" or not _is_suspect(character) else _json(character)
        for character in document
    )


def _json(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _hidden_places(text: str) -> list[int]:
    if text.isascii() and text.isprintable():
        return []
    flags = [match.span() for match in _FLAG.finditer(text)]
    return [
        place
        for place, character in enumerate(text)
        if _is_suspect(character)
        and not _belongs(text, place)
        and not any(start < place < end for start, end in flags)
    ]


def _is_suspect(character: str) -> bool:
    return (
        unicodedata.category(character) in _CATEGORIES
        or character in _BLANK
        or character in _VARIANTS
        or character in _MONGOLIAN_VARIANTS
        or 0xE0000 <= ord(character) <= 0xE0FFF
        or ord(character) & 0xFFFE == 0xFFFE  # the two noncharacters at the end of each plane
        or 0xFDD0 <= ord(character) <= 0xFDEF
    )


def _belongs(text: str, place: int) -> bool:
    """Whether a joiner or selector belongs to its neighbours."""
    character, before, after = text[place], text[place - 1 : place], text[place + 1 : place + 2]
    if not before:
        return False
    if character in _JOINERS:
        if unicodedata.combining(before) == _VIRAMA or (_is_joined(before) and _is_joined(after)):
            return True
        return character == "\u200d" and _is_pictured(before) and _is_symbol(after)
    if character in _MONGOLIAN_VARIANTS:
        return _script(before) == "MONGOLIAN" and _is_letter(before)
    if character in _VARIANTS:
        keycap = before in "0123456789#*" and after == "\u20e3"
        return _is_symbol(before) or keycap or _script(before) == "CJK"
    return False


def _script(character: str) -> str:
    return unicodedata.name(character, "").partition(" ")[0]


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LM"


def _is_joined(character: str) -> bool:
    return bool(character) and _is_letter(character) and _script(character) in _JOINED_SCRIPTS


def _is_symbol(character: str) -> bool:
    """Whether it may be an emoji: a symbol, or one of a few punctuation marks such as U+203C."""
    return (
        bool(character)
        and (
            unicodedata.category(character) in {"So", "Sm"}
            or character in "\u203c\u2049\u3030\u303d"
        )
        and character not in _BLANK
    )


def _is_pictured(character: str) -> bool:
    """Whether it may end an emoji: a symbol, its selector, or a skin tone."""
    return (
        _is_symbol(character) or character == "\ufe0f" or "\U0001f3fb" <= character <= "\U0001f3ff"
    )


def public_name(text: str) -> str:
    """A name without its folder: `onnx:/home/ada/net.onnx` becomes `onnx:net.onnx`.

    In a list of names with commas between them each is such a name. What may be the path of one
    file with a comma in it, such as `A,B/C`, is taken as one, because its folders are private.
    """
    parts = text.split(",")
    if len(parts) > 1 and all(map(_ITEM.match, parts)):
        return ",".join(map(public_name, parts))
    kind = _KIND.match(text)
    before = kind[0] if kind else ""
    return before + re.split(r"[/\\]", text[len(before) :].rstrip("/\\"))[-1]
