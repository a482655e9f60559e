"""Writes generated faces as JPEG files, as a Triton Python model; it keeps nothing and logs nothing."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image

_QUALITY = 95
_NO_SUBSAMPLING = 0  # colour at full resolution: lips and eyes are small


class TritonPythonModel:
    """Has no state: every face is encoded for itself."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with as many files as it has faces."""
        return [_answer(pb_utils.get_input_tensor_by_name(request, "swapped").as_numpy()) for request in requests]


def _answer(faces: Any) -> Any:
    files = np.array([[_encode(face)] for face in faces], dtype=np.object_)
    return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("encoded_swapped", files)])


def _encode(face: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(face).save(buffer, "JPEG", quality=_QUALITY, subsampling=_NO_SUBSAMPLING)
    return buffer.getvalue()
