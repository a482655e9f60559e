"""Every error that Visard raises, in one class hierarchy, divided by what the caller can do next.

VisardError
├── PhotoError              fix or replace the photo
│   ├── UnreadablePhoto     the path cannot be read
│   ├── UnsupportedFormat   not a still JPEG, PNG or WebP
│   ├── UnreadableVideo     no video, or one that breaks off
│   ├── CorruptPhoto        truncated or damaged
│   ├── PhotoTooLarge       more pixels or bytes than allowed
│   ├── BoxOutsidePhoto     a box that was drawn by hand does not lie in the photo
│   ├── NoFace              nothing to anonymise was found
│   ├── FaceTooSmall        a face is below the stated minimum, so the photo is withheld
│   ├── UncertainGender     a face is below `min_confidence` and guessing was refused
│   └── NotHidden           a face was swapped but is not hidden
├── ServerError
│   ├── ServerUnavailable   retry: not reachable, or lost between request and answer
│   ├── Overloaded          retry later: the server's queue is full
│   ├── DeadlineExceeded    allow more time, or send less at once
│   ├── PermissionDenied    the token is missing or wrong
│   └── ServerRefused       call the operator: a model is missing, broken or of another shape
├── CheckpointError         a weights file is unsafe, damaged or of another architecture
├── DataError               the training data cannot be used
├── ExportError             a model is out of tolerance or its tool is not usable
├── RepositoryError         a model repository cannot be written or served
├── OutputError             results cannot be written: make room, or choose another folder
└── MissingExtra            an optional part of Visard is not installed

Every message says what was wrong, with what, and what to do. This module imports nothing.
"""


class VisardError(Exception):
    """Root of everything that Visard raises on purpose."""


class PhotoError(VisardError):
    """The photo is the problem: fix it or choose another."""


class UnreadablePhoto(PhotoError):
    """The path cannot be opened or read."""


class UnsupportedFormat(PhotoError):
    """The content is not a still JPEG, PNG or WebP image."""


class UnreadableVideo(PhotoError):
    """The file is no video, or cannot be decoded to its end; nothing was written."""


class CorruptPhoto(PhotoError):
    """The content starts like an image but cannot be decoded to its end."""


class PhotoTooLarge(PhotoError):
    """The photo has more pixels or bytes than allowed; nothing was decoded."""


class BoxOutsidePhoto(PhotoError):
    """A box that was drawn by hand leaves the photo, so it belongs to another photo or to another size of it."""


class NoFace(PhotoError):
    """No face was found, so there is nothing to anonymise and nothing to return."""


class FaceTooSmall(PhotoError):
    """A face is too small for trustworthy landmarks; the photo is withheld rather than passed through."""


class UncertainGender(PhotoError):
    """The classifier is less certain than `min_confidence` and the caller refused a guess."""


class NotHidden(PhotoError):
    """A face was swapped, and the classifier or the recogniser still tells what it was; the photo is withheld."""


class ServerError(VisardError):
    """The inference server did not answer as it should."""


class ServerUnavailable(ServerError):
    """The server cannot be reached or was lost before it answered. Safe to retry."""


class Overloaded(ServerError):
    """The server's queue is full. Safe to retry after a pause.

    Attributes:
        retry_after_s: the pause that the server asked for; infinite where it asked not to be tried again.
    """

    retry_after_s: float = 0.0


class DeadlineExceeded(ServerError):
    """No answer within the deadline."""


class PermissionDenied(ServerError):
    """The server or its gateway rejected the credentials."""


class ServerRefused(ServerError):
    """The server cannot serve this request now or later: its operator has to act."""


class CheckpointError(VisardError):
    """A weights file is unsafe, damaged or does not fit the architecture."""


class DataError(VisardError):
    """The training data is empty, one-sided or damaged beyond use."""


class ExportError(VisardError):
    """A model could not be exported, or its export is out of tolerance and was not published."""


class RepositoryError(VisardError):
    """A model repository cannot be assembled, written or served."""


class OutputError(VisardError):
    """Results cannot be written where they belong: the disk is full, or the folder is used by something else."""


class MissingExtra(VisardError, ImportError):
    """An optional dependency is not installed; the message names the extra to install."""

    def __init__(self, extra: str, what: str) -> None:
        """Say that `what` needs `visard[extra]`."""
        super().__init__(f"{what} needs an optional part: pip install 'visard[{extra}]'")
