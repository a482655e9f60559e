"""The words of the page: every language says all that English says, and the page asks for nothing else."""

from __future__ import annotations

import json
import re

import pytest

import visard_errors
from visard_errors import PhotoError, ServerError
from visard_web.languages import LANGUAGES, STATIC, page_in, preferred

WORDS = {each: json.loads((STATIC / "words" / f"{each}.json").read_text(encoding="utf-8")) for each in LANGUAGES}
OTHERS = [each for each in LANGUAGES if each != "en"]


def forms(said):
    return said.values() if isinstance(said, dict) else [said]


def test_every_file_of_words_is_a_language():
    assert sorted(path.stem for path in (STATIC / "words").iterdir()) == sorted(LANGUAGES)


@pytest.mark.parametrize("language", OTHERS)
def test_a_language_says_all_that_english_says_with_the_same_values_and_markup(language):
    english, words = WORDS["en"], WORDS[language]
    assert list(words) == list(english)
    for key in english.keys() - {"errors"}:
        (first, *others), said = map(list, (forms(english[key]), forms(words[key])))
        assert isinstance(words[key], dict) == isinstance(english[key], dict), key
        if isinstance(words[key], dict):
            assert set(words[key]) == {"one", "other"}, key  # French and Spanish have "many", for millions
        for text in said:
            assert text.strip() == text
            assert text, key
        for pattern in (r"\{\w+\}", r"<[^>]+>"):
            expected = sorted(re.findall(pattern, [first, *others][-1]))
            assert sorted(re.findall(pattern, said[-1])) == expected, key


def test_every_error_is_said_in_every_other_language():
    """English has the server's own words."""
    source = "".join(path.read_text(encoding="utf-8") for path in STATIC.parent.glob("*.py"))
    codes = set(re.findall(r'Problem\(\s*\d+,\s*"(\w+)"', source))
    codes |= {
        name
        for name, kind in vars(visard_errors).items()
        if isinstance(kind, type) and issubclass(kind, (PhotoError, ServerError))
    }
    assert {"Forgotten", "NoConsent", "TooManyRequests", "CorruptPhoto", "ServerUnavailable"} < codes
    assert WORDS["en"]["errors"] == {}
    for language in OTHERS:
        assert codes - {"NotAcceptable"} <= set(WORDS[language]["errors"])


def test_the_page_and_its_script_ask_for_what_is_there_and_nothing_else_is():
    html = (STATIC / "index.html").read_text(encoding="utf-8")
    script = "".join(path.read_text(encoding="utf-8") for path in STATIC.glob("*.js"))
    asked = set(re.findall(r"{{([a-z0-9_.]+)}}", html)) - {"language"}
    quoted = set(re.findall(r'"([a-z]+\.[a-z0-9_.]+)"', script)) & set(WORDS["en"])
    starts = tuple(re.findall(r"say\(`([a-z.]+\.)\$\{", script))
    asked |= quoted | {key for key in WORDS["en"] if key.startswith(starts)}
    assert asked == set(WORDS["en"]) - {"errors"}
    assert set(re.findall(r'(?:say|pieces)\("([^"]+)"', script)) <= set(WORDS["en"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_is_written_in_a_language(language):
    html = page_in(language)
    assert f'<html lang="{language}">' in html
    assert WORDS[language]["promise.title"] in html
    assert "{{" not in html


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("", "en"),
        ("*", "en"),
        ("de", "de"),
        ("de-CH,de;q=0.9,en;q=0.8", "de"),
        ("nl-NL,nl;q=0.9,fr;q=0.5,en;q=0.4", "fr"),
        ("en;q=0.3, ES-419;q=0.7", "es"),
        ("fr;q=0,de;q=0.1", "de"),
        ("ja", "en"),
        ("de;q=often,\x00;;,,=", "de"),
    ],
)
def test_the_language_is_the_one_that_a_browser_likes_best(accepted, language):
    assert preferred(accepted) == language
