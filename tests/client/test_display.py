"""What a notebook shows of a result: the anonymised photo, reduced, and the scores; nothing of the original."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
from IPython.core.formatters import DisplayFormatter
from PIL import Image

from visard import ApparentGender, FaceResult, Result, UnswappedFace
from visard.display import MAX_SIDE_PX

GREY, NOISE = 90, np.random.default_rng(1).integers(0, 256, (512, 512, 3), np.uint8)
FACE = FaceResult(
    index=0,
    box=(10, 20, 110, 120),
    quad=np.zeros((4, 2)),
    aligned=NOISE,  # the original: nothing of it may be seen
    swapped=np.full((512, 512, 3), GREY, np.uint8),
    target="male",
    gender=ApparentGender(label="female", confidence=0.98),
    swapped_gender=ApparentGender(label="male", confidence=0.97),
    similarity_percent=47.12,
    pixel_cosine=0.9,
    identity_distance=0.72,
)
RESULT = Result(
    photo=np.full((900, 1800, 3), GREY, np.uint8),
    faces=(FACE,),
    others=(UnswappedFace(index=1, box=(0, 0, 9, 9), outcome="covered", reason="too_small"),),
    seconds={},
)


class Cells(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self.images = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        if tag == "img":
            self.images.append(Image.open(BytesIO(base64.b64decode(dict(attrs)["src"].partition("base64,")[2]))))

    def handle_data(self, data):
        self.cells[-1] += data


def shown(result):
    data, _ = DisplayFormatter().format(result)
    return data


def test_a_notebook_shows_the_anonymised_photo_and_the_scores():
    data = shown(RESULT)
    assert set(data) == {"text/plain", "text/html", "image/jpeg"}
    page = Cells(data["text/html"])
    assert page.cells[6:12] == ["1", "swapped", "female 98%", "male 97%", "47.1 %", "0.72 (not matched)"]
    assert page.cells[12:] == ["2", "covered: too small to be swapped", "–", "–", "–", "–"]
    (picture,) = page.images
    assert picture.size == (MAX_SIDE_PX, MAX_SIDE_PX // 2)
    assert np.ptp(np.asarray(picture)) <= 2  # grey as the result is, and nothing of the original
    assert Image.open(BytesIO(data["image/jpeg"])).size == picture.size
    assert len(data["text/plain"]) < 2000


def test_crops_are_shown_side_by_side_without_the_originals():
    (picture,) = Cells(shown(replace(RESULT, photo=None, faces=(FACE, FACE)))["text/html"]).images
    assert picture.size == (MAX_SIDE_PX, MAX_SIDE_PX // 2)
    assert np.ptp(np.asarray(picture)) <= 2


def test_where_nothing_was_made_there_is_a_table_alone():
    data = shown(replace(RESULT, photo=None, faces=()))
    assert "image/jpeg" not in data
    assert Cells(data["text/html"]).images == []


def test_a_small_photo_keeps_its_size():
    (picture,) = Cells(shown(replace(RESULT, photo=RESULT.photo[:30, :40]))["text/html"]).images
    assert picture.size == (40, 30)


def test_whatever_a_server_says_is_text():
    hostile = ApparentGender(label="<script>alert(1)</script>&\"'", confidence=1.0)
    text = shown(replace(RESULT, faces=(replace(FACE, gender=hostile, swapped_gender=hostile),)))["text/html"]
    page = Cells(text)
    assert page.tags == {"div", "img", "table", "thead", "tbody", "tr", "th", "td"}
    assert page.cells[8] == "<script>alert(1)</script>&\"' 100%"
    assert not re.search(r"\bon\w+=|https?:", text)
