"""Photographs in and out: decode, check and orient on the way in, write without metadata on the way out.

A photo is an (H, W, 3) uint8 RGB array in the sRGB colour space, upright, without anything but its pixels. What is
accepted is decided by the content, never by the name.
"""

from __future__ import annotations

import os
import stat
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from visard_errors import CorruptPhoto, OutputError, PhotoError, PhotoTooLarge, UnreadablePhoto, UnsupportedFormat
from visard_preprocess import MAX_PIXELS
from visard_preprocess.exif import Exif, exif_block, read_exif
from visard_preprocess.files import write_atomically
from visard_preprocess.pixels import pixels_of
from visard_preprocess.truncated_jpeg import with_end

MAX_BYTES = 256 * 2**20  # an uncompressed 64-megapixel photo has 183 MiB

Format = Literal["JPEG", "PNG", "WEBP"]  # that are written
ReadFormat = Literal["JPEG", "PNG", "WEBP", "AVIF", "HEIC"]
SourceType = Literal["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"]

ACCEPTED = "Visard reads still JPEG, PNG, WebP, AVIF and HEIC photos"
_FORMATS: dict[str, Format] = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
_OPENERS: dict[str, type[ImageFile.ImageFile]] = {  # of HEIC: see `_opener`
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}
# The brand with which a file of the ISO family begins, as a video or an audio book does too (MP4, MOV, M4A). Those of
# moving HEIC pictures (hevc, msf1) are not here; a moving AVIF is told by its number of pictures.
_BRANDS: dict[bytes, ReadFormat] = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"mif1"), "HEIC"),
}
_SAVE_OPTIONS: dict[Format, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    "PNG": {"compress_level": 4},  # 3 % larger than the default in a third of the time
    "WEBP": {"quality": 95},
}
_MAX_SIDE: dict[Format, int] = {"JPEG": 65_500, "PNG": 2**31 - 1, "WEBP": 16_383}  # by format and encoder

_NO_EXIF: Exif = {}

_ORIENTATION = 0x0112
_TRANSPOSITIONS = {  # EXIF orientation → what brings the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# IPTC's namespace and controlled vocabulary: https://cv.iptc.org/newscodes/digitalsourcetype/
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
    "<Iptc4xmpExt:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/{}</Iptc4xmpExt:DigitalSourceType>"
    '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)


def read_photo(source: Any, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> NDArray[np.uint8]:
    """Decode a photo to upright sRGB pixels.

    The EXIF orientation is applied, an embedded colour profile is converted to sRGB, transparency is laid on white,
    16 bits are scaled to 8. All metadata stays behind. Of a JPEG or HEIC that carries several pictures (as phones write
    for depth, brightness or a burst) the first, or main, one is the photo; other files with several are refused.

    Args:
        source: a path, the bytes of a file, a PIL image or an (H, W, 3) uint8 RGB array.
        max_pixels: refuse more, before anything is decoded.
        max_bytes: refuse larger files, before they are read.

    Returns:
        (H, W, 3) uint8 RGB. May be read-only, or the very array that was given.

    Raises:
        UnreadablePhoto: the path is not a readable file.
        UnsupportedFormat: not a still JPEG, PNG, WebP, AVIF or HEIC, or what reads the last two is not installed.
        CorruptPhoto: truncated or damaged. A JPEG that lacks its end marker and no pixel is neither.
        PhotoTooLarge: more pixels or bytes than allowed.
        PhotoError: an array or another object that is not a photo.
    """
    return read_photo_and_exif(source, max_pixels=max_pixels, max_bytes=max_bytes)[0]


def read_photo_and_exif(
    source: Any, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES
) -> tuple[NDArray[np.uint8], Exif]:
    """Decode a photo, and read what may be kept of its metadata; see `read_photo` and `visard_preprocess.exif`."""
    if isinstance(source, np.ndarray):
        return _check_array(source, max_pixels), {}
    if isinstance(source, Image.Image):
        return _decode(source, f"PIL image of mode {source.mode}", max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        name = f"the photo of {len(data)} bytes"
        if len(data) > max_bytes:
            raise _too_many_bytes(name, len(data), max_bytes)
    elif isinstance(source, (str, os.PathLike)):
        data, name = _read_file(Path(source), max_bytes), f"'{os.fspath(source)}'"
    else:
        raise PhotoError(f"a photo is a path, bytes, a PIL image or an array, not {type(source).__name__}")
    format_ = photo_format(data)
    if format_ is None:
        raise UnsupportedFormat(f"{name} {_what_is(data)}: {ACCEPTED}, whatever the file is called")
    try:
        return _decode(_open(data, format_, name), name, max_pixels)
    except CorruptPhoto:
        whole = with_end(data, lambda file: np.asarray(_open(file, format_, name))) if format_ == "JPEG" else None
        if whole is None:
            raise
    return _decode(_open(whole, format_, name), name, max_pixels)


def photo_format(data: bytes) -> ReadFormat | None:
    """Tell the format of a file by its first 32 bytes; None for what is not read here."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        # A file under the general brand of still pictures names its kind among those that it is compatible with.
        return "AVIF" if data[8:12] == b"mif1" and b"avif" in data[16:32] else _BRANDS.get(data[8:12])
    return None


def write_photo(
    image: NDArray[np.uint8], path: str | os.PathLike[str], *, source_type: SourceType | None, exif: Exif = _NO_EXIF
) -> None:
    """Write a photo by its suffix: PNG, JPEG (quality 95, 4:4:4) or WebP (quality 95).

    The file appears whole or not at all. Its only metadata is an XMP packet with the IPTC digital source type, and what
    was kept.

    Args:
        image: (H, W, 3) uint8 RGB.
        path: ends in .png, .jpg, .jpeg or .webp; its folder exists.
        source_type: `compositeWithTrainedAlgorithmicMedia` for a photo with generated faces in it,
            `trainedAlgorithmicMedia` for a generated face alone, None where nothing is generated.
        exif: what is kept of the original's metadata, see `read_photo_and_exif`.

    Raises:
        UnsupportedFormat: another suffix, or more pixels than the format can hold.
        OutputError: the path cannot be written.
    """
    path = Path(path)
    format_ = _FORMATS.get(path.suffix.lower())
    if format_ is None:
        raise UnsupportedFormat(f"cannot write '{path}': its name must end in {', '.join(sorted(_FORMATS))}")
    data = encode_photo(image, format_, source_type=source_type, exif=exif)
    try:
        write_atomically(path, data)
    except OSError as error:
        raise OutputError(f"cannot write '{path}' ({error.strerror}): choose a folder that can be written") from None


def encode_photo(
    image: NDArray[np.uint8], format: Format, *, source_type: SourceType | None, exif: Exif = _NO_EXIF
) -> bytes:
    """Encode a photo as the bytes of a file; see `write_photo`.

    Args:
        image: (H, W, 3) uint8 RGB.
        format: of the file.
        source_type: None for a photo in which nothing is generated: it gets no XMP packet.
        exif: what is kept of the original's metadata.

    Raises:
        UnsupportedFormat: another format, or more pixels than the format can hold.
    """
    if format not in _SAVE_OPTIONS:
        raise UnsupportedFormat(f"cannot write {format!r}: Visard writes {', '.join(_SAVE_OPTIONS)}")
    if source_type is not None and source_type not in get_args(SourceType):
        raise ValueError(f"source_type must be one of {', '.join(get_args(SourceType))}, not {source_type!r}")
    image = _check_array(image, max_pixels=None)
    if max(image.shape[:2]) > _MAX_SIDE[format]:
        raise UnsupportedFormat(f"{format} holds at most {_MAX_SIDE[format]} pixels a side: write PNG instead")
    options = dict(_SAVE_OPTIONS[format])
    xmp = b"" if source_type is None else xmp_packet(source_type)
    if not xmp:
        pass
    elif format == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    else:
        options["xmp"] = xmp
    if exif:
        options["exif"] = exif_block(exif)
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, format, **options)
    return buffer.getvalue()


def xmp_packet(source_type: SourceType) -> bytes:
    """Write the XMP packet of a file that `encode_photo` makes."""
    return _XMP.format(source_type).encode()


def _read_file(path: Path, max_bytes: int) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device might never end
            raise UnreadablePhoto(f"'{path}' is not a file: give the path of a photo")
        if status.st_size > max_bytes:
            raise _too_many_bytes(f"'{path}'", status.st_size, max_bytes)
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = getattr(error, "strerror", None) or error
        raise UnreadablePhoto(f"cannot read '{path}' ({reason}): check the path and its permissions") from None


def _open(data: bytes, format_: ReadFormat, name: str) -> Image.Image:
    opener = _opener(format_, name)
    try:
        # Not Image.open: it warns about large pictures by a limit of its own, ours is checked before decoding.
        return opener(BytesIO(data))
    except Image.DecompressionBombError as error:
        raise PhotoTooLarge(f"{name} has too many pixels ({error}): reduce it first") from None
    except Exception as error:  # whatever a decoder raises at hostile bytes is the photo's fault
        raise _corrupt(name, error) from error


def _opener(format_: ReadFormat, name: str) -> type[ImageFile.ImageFile]:
    """Choose what decodes a format.

    Raises:
        UnsupportedFormat: it is not installed.
    """
    if format_ == "AVIF" and not AvifImagePlugin.SUPPORTED:
        raise UnsupportedFormat(f"{name} is an AVIF photo, which this Pillow was built without: pip install pillow")
    if format_ != "HEIC":
        return _OPENERS[format_]
    try:
        from pi_heif import HeifImageFile
    except ImportError:
        raise UnsupportedFormat(
            f"{name} is a HEIC photo, which needs a further package: pip install 'visard[heic]', or convert it to JPEG"
        ) from None
    return cast("type[ImageFile.ImageFile]", HeifImageFile)


def _what_is(data: bytes) -> str:
    """Say what refused bytes look like, for the formats that people send most."""
    head = data[:512].lstrip().lower()
    if not data:
        return "is empty"
    for name, found in (
        ("a GIF", head.startswith((b"gif87a", b"gif89a"))),
        ("a PDF", head.startswith(b"%pdf")),
        ("an SVG drawing", b"<svg" in head),
        ("a moving HEIC picture", data[4:12] in (b"ftyphevc", b"ftypmsf1")),
        ("a video or a sound (MP4, MOV, M4A)", data[4:8] == b"ftyp"),
        ("a TIFF", data.startswith((b"II*\0", b"MM\0*"))),
        ("a BMP", data.startswith(b"BM")),
    ):
        if found:
            return f"is {name}"
    return "is not a picture that Visard knows"


def _decode(image: Image.Image, name: str, max_pixels: int) -> tuple[NDArray[np.uint8], Exif]:
    _check_pixels(name, image.width, image.height, max_pixels)
    if getattr(image, "is_animated", False) and image.format not in ("MPO", "HEIF"):
        raise UnsupportedFormat(f"{name} is animated: {ACCEPTED}")
    if image.mode in ("I", "F"):
        raise PhotoError(f"{name} has no known range of values: convert it to 8 bits first")
    try:
        image.load()
        upright, exif = _TRANSPOSITIONS.get(_orientation(image)), read_exif(image)
        image = _to_srgb(_to_eight_bits(image))
        return pixels_of(image if upright is None else image.transpose(upright)), exif
    except Exception as error:
        raise _corrupt(name, error) from error


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken metadata does not make a broken photo
        return 1


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey, which Pillow's own conversion would clip; leave every other mode as it is."""
    if not image.mode.startswith("I;16"):
        return image
    grey = np.asarray(image).astype(np.uint32)
    scaled = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    scaled.info = {"icc_profile": image.info.get("icc_profile")}
    return scaled


def _to_srgb(image: Image.Image) -> Image.Image:
    """Lay transparency on white and bring colours to sRGB by the embedded profile, where there is a usable one."""
    profile = image.info.get("icc_profile")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque.convert("RGB")
    elif image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    if profile:
        image = _apply_profile(image, profile)
    return image if image.mode == "RGB" else image.convert("RGB")


def _apply_profile(image: Image.Image, profile: bytes) -> Image.Image:
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if ImageCms.getProfileDescription(source).startswith("sRGB"):
            return image
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image  # a profile that cannot be used is as good as none
    return converted or image


def _check_array(array: NDArray[Any], max_pixels: int | None) -> NDArray[np.uint8]:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise PhotoError(f"an array must be (H, W, 3) uint8 RGB, not {array.shape} {array.dtype}: convert it first")
    if max_pixels is not None:
        _check_pixels("the array", array.shape[1], array.shape[0], max_pixels)
    return np.ascontiguousarray(array)


def _check_pixels(name: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise PhotoTooLarge(
            f"{name} has {width}×{height} = {width * height / 1e6:.1f} megapixels, at most {max_pixels / 1e6:.1f} are "
            "allowed: reduce it first"
        )


def _too_many_bytes(name: str, size: int, max_bytes: int) -> PhotoTooLarge:
    return PhotoTooLarge(f"{name} has {size} bytes, at most {max_bytes} are allowed: reduce it first")


def _corrupt(name: str, error: Exception) -> CorruptPhoto:
    return CorruptPhoto(f"{name} is damaged ({error}): get it again from where it came")
