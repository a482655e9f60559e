"""The meaning of the exit codes."""

from __future__ import annotations

from visard_errors import (
    CheckpointError,
    DataError,
    ExportError,
    MissingExtra,
    OutputError,
    PhotoError,
    RepositoryError,
    ServerError,
    VisardError,
)

# What a script needs to know of a failure; the first failed photo decides where there are several.
EXIT_CODES: dict[type[VisardError], int] = {
    PhotoError: 3,
    ServerError: 4,
    CheckpointError: 5,
    DataError: 5,
    ExportError: 5,
    RepositoryError: 6,
    MissingExtra: 7,
    OutputError: 8,
}
_WORDS = {
    0: "done",
    1: "a defect in Visard",
    2: "wrong usage",
    3: "a photo could not be anonymised",
    4: "the server did not answer",
    5: "a checkpoint, an export or training data was refused",
    6: "the model repository cannot be used",
    7: "an optional part is not installed",
    8: "results could not be written",
    130: "interrupted",
}
_EVERY = (0, 1, 2, 130)  # what every command may end with


def exit_help(*codes: int) -> str:
    """Name the codes that a command ends with, besides those of every command."""
    return f"Exit codes: {' · '.join(f'{code} {_WORDS[code]}' for code in sorted({*_EVERY, *codes}))}."


def exit_code(error: Exception) -> int:
    """Find the code of an error; 1 where it is none of ours."""
    return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)
