"""Throws mutated bytes at what reads bytes of others, steered by which lines they reach: `make fuzz`.

    python -m visard_testing.fuzz decoder|body|wire SECONDS

Each target may refuse its input with the error that it documents. Anything else is a finding: it ends the run, and the
input is left as `crash-…` in the working directory. What was found becomes a test.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import atheris
import numpy as np
from PIL import Image

with atheris.instrument_imports(include=["visard", "visard_preprocess", "visard_web", "python_multipart"]):
    from visard.wire import (
        ENCODED_ENSEMBLES,
        ENSEMBLES,
        check_metadata,
        parse_encoded_swap,
        parse_provenance,
        parse_response,
        parse_swap,
    )
    from visard_preprocess.photo import read_photo
    from visard_web.body import parse_form

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from visard_errors import PhotoError, ServerError
from visard_testing import HEIC
from visard_web.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MAX_PIXELS = 2**20


def decoder(data: bytes) -> None:
    """A photo comes out, or what is wrong with it."""
    with suppress(PhotoError):
        photo = read_photo(data, max_pixels=_MAX_PIXELS)
        assert photo.dtype == np.uint8
        assert photo.ndim == 3
        assert photo.shape[2] == 3
        assert photo.shape[0] * photo.shape[1] <= _MAX_PIXELS


def body(data: bytes) -> None:
    """A form comes out, or what is wrong with it."""
    head, _, rest = data.partition(b"\n")
    with suppress(Problem):
        parse_form(head.decode("latin-1"), rest)


def wire(data: bytes) -> None:
    """An answer of a server comes out, or that the server is to blame."""
    with suppress(DecodeError):
        response = service_pb2.ModelInferResponse.FromString(data)
        for parse, models in (
            (parse_response, ["gender_classifier"]),
            (parse_swap, ENSEMBLES.values()),
            (parse_encoded_swap, ENCODED_ENSEMBLES.values()),
        ):
            for model in models:
                with suppress(ServerError):
                    parse(model, response)
        with suppress(ServerError):
            parse_provenance(response)
    with suppress(DecodeError, ServerError):
        metadata = service_pb2.ModelMetadataResponse.FromString(data)
        check_metadata("gender_classifier", metadata)


def _photos() -> Iterator[bytes]:
    picture = Image.fromarray(np.random.default_rng(seed=0).integers(0, 255, (24, 32, 3)).astype(np.uint8))
    for format_, progressive in (("JPEG", False), ("JPEG", True), ("PNG", False), ("WEBP", False)):
        buffer = BytesIO()
        picture.save(buffer, format_, progressive=progressive)
        yield buffer.getvalue()
        yield buffer.getvalue()[:-2]
    picture.save(buffer := BytesIO(), "AVIF")
    yield buffer.getvalue()
    yield HEIC.with_name("sideways.heic").read_bytes()


def _forms() -> Iterator[bytes]:
    part = b'--x\r\nContent-Disposition: form-data; name="photo"; filename="a"\r\n\r\nabc\r\n'
    yield b"multipart/form-data; boundary=x\n" + part + b"--x--\r\n"
    yield b'multipart/form-data; boundary="x"\n' + part + part


def _answers() -> Iterator[bytes]:
    told = b'{"gender_classifier": {"trained": true}}'
    tensor = len(told).to_bytes(4, "little") + told
    yield service_pb2.ModelInferResponse(raw_output_contents=[tensor]).SerializeToString()
    response = service_pb2.ModelInferResponse(raw_output_contents=[bytes(8)])
    response.outputs.add(name="gender", datatype="FP32", shape=[1, 2])
    yield response.SerializeToString()
    for shape in ([1, 2], [0, 2], [1, 1], [1, 512, 512, 3]):
        response = service_pb2.ModelInferResponse()
        for name, datatype in (
            *(("gender", "FP32"), ("swapped_gender", "FP32"), ("swapped", "UINT8")),
            *(("encoded_swapped", "BYTES"), ("provenance", "BYTES")),
        ):
            response.outputs.add(name=name, datatype=datatype, shape=shape)
            response.raw_output_contents.append(b"\x04\0\0\0abcd")
        yield response.SerializeToString()


_TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], Iterator[bytes]]]] = {
    "decoder": (decoder, _photos),
    "body": (body, _forms),
    "wire": (wire, _answers),
}


def main() -> None:
    """Fuzz one target for some seconds; exits with another code than 0 where something was found."""
    name, seconds = sys.argv[1:]
    target, seeds = _TARGETS[name]
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds()):
            (Path(corpus) / str(number)).write_bytes(seed)
        atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-timeout=20", corpus], target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
