"""Decoding and writing photographs: what people really have in their folders, and what attackers send."""

from __future__ import annotations

import os
import resource
import struct
import sys
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms

from visard_errors import CorruptPhoto, OutputError, PhotoError, PhotoTooLarge, UnreadablePhoto, UnsupportedFormat
from visard_preprocess.photo import encode_photo, photo_format, read_photo, write_photo
from visard_preprocess.pixels import pixels_of
from visard_testing import HEIC

COMPOSITE = "compositeWithTrainedAlgorithmicMedia"
VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"


@pytest.fixture(scope="module")
def face(astronaut):
    """The sample photo as an array."""
    return np.array(Image.open(astronaut).convert("RGB"))


@pytest.fixture
def quarters():
    """40×60 picture with a colour of its own in each quarter: no two orientations look alike."""
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:20, :30], picture[:20, 30:] = (250, 10, 10), (10, 250, 10)
    picture[20:, :30], picture[20:, 30:] = (10, 10, 250), (240, 240, 10)
    return picture


def encoded(image, format_, **options):
    buffer = BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format_, **options)
    return buffer.getvalue()


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# --- what is read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "AVIF", "HEIC"])
def test_every_format_is_read_whatever_the_file_is_called(face, tmp_path, format_):
    path = tmp_path / "photo.txt"
    path.write_bytes(HEIC.read_bytes() if format_ == "HEIC" else encoded(face, format_))
    assert photo_format(path.read_bytes()) == photo_format(path.read_bytes()[:32]) == format_
    photo = read_photo(path)
    assert photo.shape == face.shape
    assert photo.dtype == np.uint8
    assert np.abs(photo.astype(int) - face).mean() < 4
    np.testing.assert_array_equal(read_photo(str(path)), photo)
    np.testing.assert_array_equal(read_photo(path.read_bytes()), photo)
    if format_ != "HEIC":  # which Pillow does not open by itself
        np.testing.assert_array_equal(read_photo(Image.open(path)), photo)


@pytest.mark.parametrize("size", [(1, 1), (512, 333), (30_000, 5), (5, 30_000), (4000, 23)])
def test_no_pixel_is_lost_on_the_way_out_of_pillow(size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    np.testing.assert_array_equal(pixels_of(Image.fromarray(pixels)), pixels)


def test_an_array_is_a_photo(face):
    np.testing.assert_array_equal(read_photo(face[::2, ::2]), face[::2, ::2])


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)],
)
def test_other_arrays_are_refused(array):
    with pytest.raises(PhotoError, match=r"\(H, W, 3\) uint8"):
        read_photo(array)


def test_other_objects_are_refused():
    with pytest.raises(PhotoError, match="not NoneType"):
        read_photo(None)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_sideways_phone_photo_comes_back_upright(quarters, orientation, format_):
    # How a camera held that way stores the scene: undo what the tag tells the reader to do.
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(undo[orientation](quarters))
    photo = read_photo(encoded(stored, format_, exif=exif.tobytes(), quality=95))
    assert photo.shape == quarters.shape
    assert np.abs(photo.astype(int) - quarters).mean() < 5


def test_a_sideways_heic_comes_back_upright(quarters):
    """The container turns it, the metadata say the same once more: it is turned once."""
    photo = read_photo(HEIC.with_name("sideways.heic"))
    assert photo.shape == quarters.shape
    assert np.abs(photo.astype(int) - quarters).mean() < 12


def test_without_its_package_a_heic_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with pytest.raises(
        UnsupportedFormat, match=r"is a HEIC photo, .* pip install 'visard\[heic\]', or convert it to JPEG"
    ):
        read_photo(HEIC)


def test_a_heic_or_avif_that_claims_another_size(face):
    """Of the claim the limit is told before decoding; a HEIC whose picture then has more pixels is refused."""

    def claimed(data, width, height):
        place = data.index(b"ispe") + 8
        return data[:place] + struct.pack(">II", width, height) + data[place + 8 :]

    heic, avif = HEIC.read_bytes(), encoded(face, "AVIF")
    for data in (heic, avif):
        with pytest.raises(PhotoTooLarge, match=r"200\.0 megapixels"):
            read_photo(claimed(data, 20_000, 10_000))
    with pytest.raises(CorruptPhoto, match="limit"):
        read_photo(claimed(heic, 16, 16))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's own words about it
def test_broken_exif_does_not_break_a_photo(quarters):
    data = encoded(quarters, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff broken")
    assert read_photo(data).shape == quarters.shape


def test_a_grey_photo(face):
    grey = Image.fromarray(face).convert("L")
    np.testing.assert_array_equal(read_photo(encoded(grey, "PNG")), np.asarray(grey.convert("RGB")))


def test_transparency_is_laid_on_white():
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[0] = (200, 100, 0, 255), (200, 100, 0, 0), (200, 100, 0, 51)
    expected = [(200, 100, 0), (255, 255, 255), (244, 224, 204)]  # 51 is a fifth
    np.testing.assert_allclose(read_photo(encoded(rgba, "PNG"))[0], expected, atol=1)


def test_a_palette_png_with_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    photo = read_photo(encoded(image, "PNG", transparency=bytes([0, 255])))
    np.testing.assert_array_equal(photo, [[(255, 255, 255), (200, 100, 50)]])


def test_a_16_bit_grey_png_is_scaled_not_clipped():
    values = np.linspace(0, 65535, 256).astype(np.uint16)[None]
    data = encoded(Image.fromarray(values), "PNG")
    assert data[24] == 16  # the header's bit depth
    photo = read_photo(data)
    np.testing.assert_allclose(photo[0, :, 0], values[0] / 257, atol=0.5)
    assert (photo[..., 0] == photo[..., 2]).all()


def test_a_16_bit_colour_png_is_scaled_not_clipped():
    rows = b"\0" + struct.pack(">6H", 0, 32768, 65535, 257, 25700, 51400)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    photo = read_photo(b"\x89PNG\r\n\x1a\n" + chunks)
    np.testing.assert_allclose(photo, [[(0, 127.5, 255), (1, 100, 200)]], atol=1)


def test_a_cmyk_jpeg(quarters):
    photo = read_photo(encoded(Image.fromarray(quarters).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(photo.astype(int) - quarters).mean() < 6


def swapped_primaries_profile():
    """An sRGB profile whose red and green are exchanged, under another name."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    entries = {bytes(profile[i : i + 4]): i for i in range(132, 132 + 12 * int.from_bytes(profile[128:132]), 12)}
    red, green = entries[b"rXYZ"] + 4, entries[b"gXYZ"] + 4
    profile[red : red + 8], profile[green : green + 8] = profile[green : green + 8], profile[red : red + 8]
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_an_embedded_colour_profile_is_converted_to_srgb(format_):
    red = np.full((32, 32, 3), (255, 0, 0), np.uint8)
    photo = read_photo(encoded(red, format_, icc_profile=swapped_primaries_profile()))
    np.testing.assert_allclose(photo.mean(axis=(0, 1)), (0, 255, 0), atol=4)


def test_an_srgb_profile_changes_nothing(face):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(read_photo(encoded(face, "PNG", icc_profile=profile)), face)


@pytest.mark.parametrize("profile", [b"not a profile", swapped_primaries_profile()[:300]])
def test_a_broken_colour_profile_is_ignored(face, profile):
    np.testing.assert_array_equal(read_photo(encoded(face, "PNG", icc_profile=profile)), face)


def test_of_a_jpeg_with_several_pictures_the_first_is_the_photo(quarters):
    second = Image.fromarray(255 - quarters)
    data = encoded(quarters, "MPO", save_all=True, append_images=[second], quality=95)
    assert Image.open(BytesIO(data)).n_frames == 2
    for source in (data, Image.open(BytesIO(data))):
        assert np.abs(read_photo(source).astype(int) - quarters).mean() < 5


def test_one_pixel_is_a_photo():
    np.testing.assert_array_equal(read_photo(encoded(Image.new("RGB", (1, 1), "red"), "PNG")), [[(255, 0, 0)]])


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(encoded(Image.new("RGB", (8, 8)), "GIF"), "is a GIF", id="gif"),
        pytest.param(b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "is an SVG", id="svg"),
        pytest.param(encoded(Image.new("RGB", (8, 8)), "PDF"), "is a PDF", id="pdf"),
        pytest.param(encoded(Image.new("RGB", (8, 8)), "TIFF"), "is a TIFF", id="tiff"),
        pytest.param(encoded(Image.new("RGB", (8, 8)), "BMP"), "is a BMP", id="bmp"),
        pytest.param(b"\0\0\0\x18ftypisom\0\0\0\0isomavc1", "is a video", id="mp4"),
        pytest.param(b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "is a video", id="mov"),
        pytest.param(b"\0\0\0\x18ftyphevc\0\0\0\0msf1hevc", "is a moving HEIC", id="moving-heic"),
        pytest.param(b"Dear Sir or Madam,\n", "not a picture", id="text"),
        pytest.param(b"", "is empty", id="empty"),
    ],
)
def test_other_formats_are_refused_under_any_name(tmp_path, data, words):
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    with pytest.raises(UnsupportedFormat, match=words) as refusal:
        read_photo(path)
    assert str(path) in str(refusal.value)
    assert "JPEG, PNG, WebP, AVIF and HEIC" in str(refusal.value)
    with pytest.raises(UnsupportedFormat):
        read_photo(data)


@pytest.mark.parametrize("format_", ["WEBP", "PNG", "AVIF"])
def test_animations_are_refused(quarters, format_):
    data = encoded(quarters, format_, save_all=True, append_images=[Image.fromarray(255 - quarters)])
    assert Image.open(BytesIO(data)).n_frames == 2
    with pytest.raises(UnsupportedFormat, match="animated"):
        read_photo(data)
    with pytest.raises(UnsupportedFormat, match="animated"):
        read_photo(Image.open(BytesIO(data)))


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "AVIF", "HEIC"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.98])
def test_a_truncated_photo_is_damaged(face, format_, kept):
    data = HEIC.read_bytes() if format_ == "HEIC" else encoded(face, format_)
    with pytest.raises(CorruptPhoto, match="is damaged"):
        read_photo(data[: int(len(data) * kept)])


def test_a_damaged_photo_behind_a_pil_image_is_damaged(face):
    data = encoded(face, "JPEG")
    with pytest.raises(CorruptPhoto):
        read_photo(Image.open(BytesIO(data[: len(data) // 2])))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_pil_image_without_a_known_range_is_refused(mode):
    with pytest.raises(PhotoError, match="8 bits"):
        read_photo(Image.new(mode, (4, 4)))


def bomb(format_):
    """The header of a 200-megapixel photo; there are no pixels behind it, so that decoding it would fail otherwise."""
    if format_ == "PNG":
        header = struct.pack(">IIBBBBB", 20_000, 10_000, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
    if format_ == "JPEG":
        small = encoded(Image.new("RGB", (16, 16)), "JPEG")
        return small.replace(struct.pack(">HH", 16, 16), struct.pack(">HH", 10_000, 20_000), 1)
    size = (16_000 - 1).to_bytes(3, "little") + (12_500 - 1).to_bytes(3, "little")
    vp8x = b"VP8X" + struct.pack("<I", 10) + bytes(4) + size
    return b"RIFF" + struct.pack("<I", 4 + len(vp8x)) + b"WEBP" + vp8x


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
def test_a_200_megapixel_bomb_is_refused_undecoded_and_without_warnings(format_):
    with warnings.catch_warnings(record=True) as caught, pytest.raises(PhotoTooLarge, match="reduce it"):
        read_photo(bomb(format_))
    assert not caught


def test_the_pixel_limit_is_the_callers(quarters):
    assert read_photo(quarters, max_pixels=2400).shape == quarters.shape
    for source in (quarters, Image.fromarray(quarters), encoded(quarters, "PNG")):
        with pytest.raises(PhotoTooLarge, match="60×40"):
            read_photo(source, max_pixels=2399)


def test_the_size_limit_of_files(quarters, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(quarters, "PNG"))
    size = path.stat().st_size
    assert read_photo(path, max_bytes=size).shape == quarters.shape
    for source in (path, path.read_bytes()):
        with pytest.raises(PhotoTooLarge, match=f"{size} bytes"):
            read_photo(source, max_bytes=size - 1)


def test_unreadable_paths(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    for path, words in (
        (tmp_path / "missing.jpg", "No such file"),
        (tmp_path, "not a file"),
        (tmp_path / "pipe", "not a file"),
        ("nul\0byte.jpg", "null"),
    ):
        with pytest.raises(UnreadablePhoto, match=words):
            read_photo(path)


# --- what is written ------------------------------------------------------------------------------------------------


def private_jpeg(picture):
    """A phone photo with everything that must not survive: place, thumbnail, comment, XMP, a colour profile's name."""
    exif = Image.Exif()
    exif[0x010E] = "SECRET-description"
    exif[0x010F] = "SECRET-maker"
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0), 29: "SECRET-date"})
    blob = exif.tobytes() + b"SECRET-thumbnail"
    return encoded(picture, "JPEG", exif=blob, comment=b"SECRET-comment", xmp=b"<x>SECRET-xmp</x>", quality=95)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG", ".png", ".webp"])
def test_no_metadata_survives_and_the_provenance_is_stated(quarters, tmp_path, suffix):
    source, target = private_jpeg(quarters), tmp_path / f"result{suffix}"
    assert source.count(b"SECRET") == 6
    write_photo(read_photo(source), target, source_type=COMPOSITE)
    data = target.read_bytes()
    assert b"SECRET" not in data
    assert b"Exif\0" not in data
    assert b"EXIF" not in data
    assert f"<Iptc4xmpExt:DigitalSourceType>{VOCABULARY}{COMPOSITE}</Iptc4xmpExt:DigitalSourceType>".encode() in data
    with Image.open(target) as image:
        assert not image.getexif()
        harmless = {"jfif", "jfif_version", "jfif_unit", "jfif_density", "loop", "background", "timestamp", "duration"}
        assert set(image.info) - harmless <= {"xmp", "XML:com.adobe.xmp"}
        xmp = image.info.get("xmp") or image.info["XML:com.adobe.xmp"].encode()
    assert xmp.startswith('<?xpacket begin="\ufeff"'.encode())
    assert np.abs(read_photo(target).astype(int) - quarters).mean() < 8  # WebP halves the resolution of colour


def test_png_keeps_every_pixel_and_jpeg_every_colour_sample(face):
    np.testing.assert_array_equal(read_photo(encode_photo(face, "PNG", source_type=COMPOSITE)), face)
    jpeg = Image.open(BytesIO(encode_photo(face, "JPEG", source_type=COMPOSITE)))
    assert [layer[1:3] for layer in jpeg.layer] == [(1, 1)] * 3  # 4:4:4
    assert np.abs(np.asarray(jpeg).astype(int) - face).mean() < 2


def test_a_generated_face_is_marked_as_wholly_generated(quarters):
    data = encode_photo(quarters, "PNG", source_type="trainedAlgorithmicMedia")
    assert f"{VOCABULARY}trainedAlgorithmicMedia<".encode() in data
    with pytest.raises(ValueError, match="source_type"):
        encode_photo(quarters, "PNG", source_type="digitalCapture")


def test_an_unknown_suffix_writes_nothing(quarters, tmp_path):
    for name in ("photo.gif", "photo"):
        with pytest.raises(UnsupportedFormat, match=r"\.jpeg, \.jpg, \.png, \.webp"):
            write_photo(quarters, tmp_path / name, source_type=COMPOSITE)
    assert list(tmp_path.iterdir()) == []


def test_a_photo_larger_than_the_format_is_refused():
    with pytest.raises(UnsupportedFormat, match="PNG instead"):
        encode_photo(np.zeros((1, 16_384, 3), np.uint8), "WEBP", source_type=COMPOSITE)


def test_a_target_that_cannot_be_written(quarters, tmp_path):
    (tmp_path / "folder.png").mkdir()
    for target in (tmp_path / "missing" / "photo.png", tmp_path / "folder.png"):
        with pytest.raises(OutputError, match="cannot write"):
            write_photo(quarters, target, source_type=COMPOSITE)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_a_full_disk_leaves_the_old_file_whole(face, tmp_path):
    target = tmp_path / "photo.png"
    target.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # stands for a full disk: the write stops half way
    try:
        with pytest.raises(OutputError, match="too large"):
            write_photo(face, target, source_type=COMPOSITE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_written_file_has_the_usual_permissions(quarters, tmp_path):
    write_photo(quarters, tmp_path / "photo.png", source_type=COMPOSITE)
    (tmp_path / "usual").touch()
    assert (tmp_path / "photo.png").stat().st_mode == (tmp_path / "usual").stat().st_mode
