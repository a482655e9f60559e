"""The page in its visitors' languages: its HTML with the words of `static/words/LANGUAGE.json` put in.

English is the measure: every language has its words, with the same markup and the same names in braces. The script of
the page reads the same file. Errors are in English as the server words them; the other languages have a sentence for
each class.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

STATIC = Path(__file__).parent / "static"
LANGUAGES = ("en", "de", "fr", "es")


def preferred(accept_language: str) -> str:
    """Choose the language that a browser likes best, by its Accept-Language header; English where it names none."""
    liked = []
    for place, each in enumerate(accept_language.split(",")):
        name, _, quality = each.partition(";")
        language = name.strip().lower().partition("-")[0]
        match = re.fullmatch(r"\s*q=([01](?:\.\d{0,3})?)\s*", quality)
        weight = 1.0 if match is None else float(match[1])
        if language in LANGUAGES and weight > 0:
            liked.append((-weight, place, language))
    return min(liked)[2] if liked else "en"


@cache
def page_in(language: str) -> str:
    """Write the page in a language: ``{{word}}`` stands for what is said there."""
    words = json.loads((STATIC / "words" / f"{language}.json").read_text(encoding="utf-8"))
    html = (STATIC / "index.html").read_text(encoding="utf-8")
    return re.sub(r"{{([a-z0-9_.]+)}}", lambda place: language if place[1] == "language" else words[place[1]], html)
