"""Decodes faces that come as files, as a Triton Python model.

What comes is hostile until proven otherwise: the content decides about the format, only three decoders are asked, and
nothing is decoded before the header says 512×512 pixels. It keeps nothing and logs nothing.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image

_FORMATS = ("JPEG", "PNG", "WEBP")
_SIZE = (512, 512)
_MAX_BYTES = 2**21  # more than twice the pixels themselves


class TritonPythonModel:
    """Has no state: every face is decoded for itself."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request for itself: a file that cannot be read is that one's error alone."""
        return [_answer(request) for request in requests]


def _answer(request: Any) -> Any:
    files = pb_utils.get_input_tensor_by_name(request, "encoded_image").as_numpy()[:, 0]
    try:
        images = np.stack([_decode(file) for file in files])
    except _Refused as refused:
        error = pb_utils.TritonError(f"face_decoder: {refused}", pb_utils.TritonError.INVALID_ARG)
        return pb_utils.InferenceResponse(error=error)
    return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("image", images)])


def _decode(file: bytes) -> Any:
    if len(file) > _MAX_BYTES:
        raise _Refused(f"a file of {len(file)} bytes, at most {_MAX_BYTES} are taken")
    try:
        with Image.open(BytesIO(file), formats=_FORMATS) as image:
            if image.size != _SIZE:
                raise _Refused(f"a picture of {image.width}×{image.height} pixels, not 512×512")
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError):  # what Pillow's decoders raise; their words may quote the file
        raise _Refused("neither a whole JPEG nor PNG nor WebP file") from None


class _Refused(Exception):
    """Says what is wrong with a file."""
