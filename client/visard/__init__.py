"""Visard: anonymises faces in photographs by swapping their apparent gender.

    import visard

    with visard.Client("127.0.0.1:8001") as client:
        result = client.anonymize("photo.jpg")
        result.save("anonymised.jpg")

Importing this package loads neither torch nor dlib; dlib comes with the first photo.
"""

from visard.blocking import Client
from visard.client import AsyncClient
from visard.connection import Connection
from visard.local import Local
from visard.options import Choice, Options
from visard.pipeline import Found
from visard.policy import FaceOutcome, Reason, Unswapped
from visard.progress import Progress
from visard.result import (
    Anonymized,
    ApparentGender,
    FaceResult,
    Failed,
    Gender,
    ImageFormat,
    Outcome,
    Result,
    UnswappedFace,
)
from visard.wire import Direction, Swap
from visard_errors import (
    BoxOutsidePhoto,
    CheckpointError,
    CorruptPhoto,
    DataError,
    DeadlineExceeded,
    ExportError,
    FaceTooSmall,
    MissingExtra,
    NoFace,
    NotHidden,
    OutputError,
    Overloaded,
    PermissionDenied,
    PhotoError,
    PhotoTooLarge,
    RepositoryError,
    ServerError,
    ServerRefused,
    ServerUnavailable,
    UncertainGender,
    UnreadablePhoto,
    UnreadableVideo,
    UnsupportedFormat,
    VisardError,
)

__all__ = [
    "Anonymized",
    "ApparentGender",
    "AsyncClient",
    "BoxOutsidePhoto",
    "CheckpointError",
    "Choice",
    "Client",
    "Connection",
    "CorruptPhoto",
    "DataError",
    "DeadlineExceeded",
    "Direction",
    "ExportError",
    "FaceOutcome",
    "FaceResult",
    "FaceTooSmall",
    "Failed",
    "Found",
    "Gender",
    "ImageFormat",
    "Local",
    "MissingExtra",
    "NoFace",
    "NotHidden",
    "Options",
    "Outcome",
    "OutputError",
    "Overloaded",
    "PermissionDenied",
    "PhotoError",
    "PhotoTooLarge",
    "Progress",
    "Reason",
    "RepositoryError",
    "Result",
    "ServerError",
    "ServerRefused",
    "ServerUnavailable",
    "Swap",
    "UncertainGender",
    "UnreadablePhoto",
    "UnreadableVideo",
    "UnsupportedFormat",
    "Unswapped",
    "UnswappedFace",
    "VisardError",
]
