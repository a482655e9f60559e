"""Of a photo's metadata stays what a caller names, value by value, and nothing else can."""

from __future__ import annotations

import struct
from fractions import Fraction
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational, ImageFileDirectory_v2

from visard_preprocess.exif import exif_block, kept, read_exif
from visard_preprocess.photo import encode_photo, read_photo_and_exif

PIXELS = np.full((16, 24, 3), 128, np.uint8)
EXPOSURE = {
    "ExposureTime": Fraction(1, 125),
    "FNumber": Fraction(14, 5),
    "ExposureProgram": 2,
    "PhotographicSensitivity": 400,
    "ExposureBiasValue": Fraction(-2, 3),
    "MeteringMode": 5,
    "Flash": 16,
    "FocalLength": Fraction(213, 50),
    "ExposureMode": 0,
    "WhiteBalance": 1,
    "FocalLengthIn35mmFilm": 26,
    "SceneCaptureType": 0,
}
DATE = {"DateTimeOriginal": "2026:11:28 12:34:56"}
NUMBERS = {tag.name: tag.value for tag in ExifTags.Base} | {"PhotographicSensitivity": 34855}
VERSION = 36864


def file(exif, format="JPEG", **options):
    buffer = BytesIO()
    Image.fromarray(PIXELS).save(buffer, format, exif=exif, **options)
    return buffer.getvalue()


def directory(entries, at, following=0):
    """A little-endian directory that lies at an offset: (tag, type, count, bytes) each."""
    head, values, after = struct.pack("<H", len(entries)), b"", at + 6 + 12 * len(entries)
    for tag, kind, count, data in sorted(entries):
        place = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<I", after + len(values))
        head += struct.pack("<HHI", tag, kind, count) + place
        values += data if len(data) > 4 else b""
    return head + struct.pack("<I", following) + values


def everything():
    """Every tag that is known, in every directory, with a text; where it may stay, with a right value."""
    tags = [tag.value for tag in ExifTags.Base if tag not in (0x8769, 0x8825, 0xA005)]
    inner = {tag: (tag, 2, 7, b"SECRET\0") for tag in tags}
    for name, value in (EXPOSURE | DATE).items():
        tag, whole = NUMBERS[name], isinstance(value, int)
        if isinstance(value, Fraction):
            kind = 10 if value < 0 else 5
            inner[tag] = (tag, kind, 1, struct.pack("<ii", value.numerator, value.denominator))
        else:
            inner[tag] = (tag, 3, 1, struct.pack("<H", value)) if whole else (tag, 2, 20, value.encode() + b"\0")
    pointers = [(0x8769, 4, 1), (0x8825, 4, 1)]
    start = 8 + len(directory([(tag, 2, 7, b"SECRET\0") for tag in tags] + [(*each, b"1234") for each in pointers], 8))
    exif = directory(list(inner.values()), start)
    gps = directory([(tag.value, 2, 7, b"SECRET\0") for tag in ExifTags.GPS], start + len(exif))
    at = start + len(exif) + len(gps)
    thumbnail = directory([(0x0201, 4, 1, struct.pack("<I", at)), (0x0202, 4, 1, struct.pack("<I", 16))], at)
    first = [(tag, 2, 7, b"SECRET\0") for tag in tags]
    first += [(*pointers[0], struct.pack("<I", start)), (*pointers[1], struct.pack("<I", start + len(exif)))]
    block = directory(first, 8, following=at) + exif + gps + thumbnail + b"SECRET thumbnail"
    return b"Exif\0\0" + struct.pack("<2sHI", b"II", 42, 8) + block


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("written", ["JPEG", "PNG", "WEBP"])
def test_of_every_tag_those_stay_that_were_named(format_, written):
    data = file(everything(), format_)
    assert data.count(b"SECRET") > 200
    _, found = read_photo_and_exif(data)
    assert found == EXPOSURE | DATE
    for keep, expected in (
        ("nothing", {}),
        ("exposure", EXPOSURE),
        ("date", DATE),
        ("exposure_and_date", EXPOSURE | DATE),
    ):
        result = encode_photo(PIXELS, written, source_type=None, exif=kept(found, keep))
        assert b"SECRET" not in result
        assert (b"xif" in result.lower()) == bool(expected)
        image = Image.open(BytesIO(result))
        image.load()
        assert set(image.getexif()) == ({0x8769} if expected else set())
        inner = image.getexif().get_ifd(0x8769)
        numbers = {NUMBERS[name]: value for name, value in expected.items()}
        assert {tag: inner[tag] for tag in inner if tag != VERSION} == pytest.approx(numbers)
        assert read_exif(image) == expected


def test_every_type_is_the_one_that_exif_asks_for():
    block = BytesIO(exif_block(EXPOSURE | DATE).removeprefix(b"Exif\0\0"))
    header = block.read(8)
    outer = ImageFileDirectory_v2(header)
    block.seek(outer.next)
    outer.load(block)
    inner = ImageFileDirectory_v2(header, group=0x8769)
    block.seek(outer[0x8769])
    inner.load(block)
    assert {tag for tag, kind in inner.tagtype.items() if kind == 5} == {33434, 33437, 37386}
    assert [tag for tag, kind in inner.tagtype.items() if kind == 10] == [NUMBERS["ExposureBiasValue"]]
    assert (inner.tagtype[36867], inner.tagtype[VERSION]) == (2, 7)
    (count,) = struct.unpack_from("<H", block.getbuffer(), outer[0x8769])
    numbers = [struct.unpack_from("<H", block.getbuffer(), outer[0x8769] + 2 + 12 * i)[0] for i in range(count)]
    assert numbers == sorted(numbers)  # as TIFF wants it


WRONG = [
    *[("ExposureTime", value) for value in ("1/125", 5, IFDRational(1, 0), IFDRational(0, 5), IFDRational(90_000, 1))],
    *[("ExposureProgram", value) for value in (9, "SECRET", b"SECRET", (1, 2))],
    *[("PhotographicSensitivity", value) for value in (0, (100, 200), 10**6)],
    *[("ExposureBiasValue", value) for value in (IFDRational(-101, 1), 3)],
    *[("DateTimeOriginal", value) for value in ("2026:13:28 12:00:00", "2026-11-28 12:00:00", "٢٠٢٦:11:28 12:00:00")],
    *[("DateTimeOriginal", value) for value in ("2026:11:28 12:00:00 SECRET", "    :  :     :  :  ", b"2026:11", 7)],
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=map(str, WRONG))
def test_a_value_that_is_not_as_exif_has_it_stays_behind(name, value):
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({NUMBERS["FNumber"]: IFDRational(28, 10), NUMBERS[name]: value})
    _, found = read_photo_and_exif(file(exif))
    assert found == {"FNumber": Fraction(14, 5)}


def test_values_have_a_cameras_precision():
    exif = Image.Exif()
    exif.get_ifd(0x8769).update(
        {33434: IFDRational(80_013_337, 10_000_000_000), 33437: IFDRational(2_800_042, 1_000_000)}
    )
    _, found = read_photo_and_exif(file(exif))
    assert found == {"ExposureTime": Fraction(1, 125), "FNumber": Fraction(14, 5)}


@settings(max_examples=200, deadline=None)
@given(st.fractions(Fraction(1, 100_000), 86_400), st.fractions(-100, 100))
def test_what_was_read_can_be_written_and_is_read_the_same(seconds, bias):
    exif = Image.Exif()
    inner = exif.get_ifd(0x8769)
    for tag, value in ((33434, seconds), (37380, bias.limit_denominator(2**20))):
        value = value.limit_denominator(2**14)
        inner[tag] = IFDRational(value.numerator, value.denominator)
    image = Image.open(BytesIO(file(exif)))
    found = read_exif(image)
    again = Image.open(BytesIO(encode_photo(PIXELS, "JPEG", source_type=None, exif=found)))
    assert read_exif(again) == found


@pytest.mark.filterwarnings("ignore")  # of Pillow
@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_broken_metadata_breaks_no_photo_and_brings_nothing_in(noise):
    block = exif_block(EXPOSURE | DATE)
    for data in (b"Exif\0\0" + noise, block[: len(noise)] + noise, block[:40] + noise + block[40 + len(noise) :]):
        _, found = read_photo_and_exif(file(data[:60_000]))
        exif_block(found)  # refuses what may not be kept


@pytest.mark.parametrize("exif", [{"Make": "SECRET"}, {"FNumber": 2.8}, {"DateTimeOriginal": "SECRET"}, {"Flash": 999}])
def test_nothing_else_can_be_written(exif):
    with pytest.raises(ValueError, match="cannot be kept"):
        encode_photo(PIXELS, "PNG", source_type=None, exif=exif)


def test_pixels_are_the_same_with_and_without():
    with_exif = encode_photo(PIXELS, "PNG", source_type=None, exif=EXPOSURE)
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(with_exif))), PIXELS)
