"""JPEG files that end too early: what is missing decides, not that something is."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from visard_errors import CorruptPhoto
from visard_preprocess.photo import read_photo

FORMS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "small chroma": {"subsampling": "4:2:0"},
}


@pytest.fixture(scope="module")
def face(astronaut):
    return Image.open(astronaut).convert("RGB")


def jpeg(image, **options):
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("end", [b"", b"\xff", b"\xff\xff", bytes(100)], ids=["none", "half", "halves", "zeros"])
def test_without_its_end_marker_alone_a_jpeg_is_whole(face, mode, form, end):
    data = jpeg(face.convert(mode), **FORMS[form])
    assert data.endswith(b"\xff\xd9")
    np.testing.assert_array_equal(read_photo(data[:-2] + end), read_photo(data))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("missing", [8, 40, 1000, 20_000])
@pytest.mark.parametrize("end", [b"", b"\xff"], ids=["none", "half"])
def test_where_pixels_are_missing_it_is_damaged(face, form, missing, end):
    with pytest.raises(CorruptPhoto):
        read_photo(jpeg(face, **FORMS[form])[:-missing] + end)


def test_where_a_whole_scan_is_missing_it_is_damaged(face):
    data = jpeg(face, progressive=True)
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    tables = [data.rfind(b"\xff\xc4", 0, at) for at in scans]
    assert len(scans) > 3
    for start in tables[1:]:  # cut before the tables of each further scan: what is there is a picture, a coarser one
        with pytest.raises(CorruptPhoto):
            read_photo(data[:start])


def test_a_jpeg_of_a_header_alone_is_damaged(face):
    data = jpeg(face)
    for end in (data.index(b"\xff\xda"), data.index(b"\xff\xda") + 14):
        with pytest.raises(CorruptPhoto):
            read_photo(data[:end])
