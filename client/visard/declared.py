"""Options that are declared once: type, default, range and help text stand at the field, and others read them there.

    size: Annotated[int, Interval(ge=33, le=224), Doc("Edge of the pictures.")] = 224

The command line and the REST query are made of what `declared` tells; `check` refuses what a declaration excludes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Interval
from typing_extensions import Doc, get_type_hints


@dataclass(frozen=True, kw_only=True)
class Declared:
    """One option.

    Attributes:
        name: of the field.
        type: what it may be, without metadata.
        default: `dataclasses.MISSING` where it has to be given.
        words: what it does, for the user.
        range: what a number may be; its open ends are None.
    """

    name: str
    type: Any
    default: Any
    words: str
    range: Interval


@cache
def declared(options: type) -> tuple[Declared, ...]:
    """Read the fields of a dataclass, in their order."""
    hints = get_type_hints(options, include_extras=True)
    return tuple(
        Declared(
            name=field.name,
            type=bare(hints[field.name]),
            default=field.default,
            words=words(hints[field.name]),
            range=_last(hints[field.name], Interval, Interval()),
        )
        for field in fields(options)
    )


def bare(hint: Any) -> Any:
    """The type itself."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def words(hint: Any) -> str:
    """What a type's `Doc` says; empty where it has none."""
    return str(_last(hint, Doc, Doc("")).documentation)


def check(options: Any) -> None:
    """Refuse values outside of what is declared: for `__post_init__`.

    Raises:
        ValueError: a value is none of the choices, or outside of its range; the message begins with its name.
    """
    for field in declared(options.__class__):
        value = getattr(options, field.name)
        if get_origin(field.type) is Literal and value not in get_args(field.type):
            choices = ", ".join(map(str, get_args(field.type)))
            raise ValueError(f"{field.name} must be one of {choices}, not {value!r}")
        if value is not None and not _within(value, field.range):
            raise ValueError(f"{field.name} must be {_range_words(field.range)}, not {value}")


def _last(hint: Any, kind: type, default: Any) -> Any:
    """The outermost piece of metadata of a kind."""
    return next((each for each in reversed(getattr(hint, "__metadata__", ())) if isinstance(each, kind)), default)


def _within(value: Any, range: Interval) -> bool:
    return (
        (range.ge is None or value >= range.ge)
        and (range.gt is None or value > range.gt)
        and (range.le is None or value <= range.le)
        and (range.lt is None or value < range.lt)
    )


def _range_words(range: Interval) -> str:
    if range.ge is not None and range.le is not None:
        return f"{range.ge}..{range.le}"
    ends = (("at least", range.ge), ("above", range.gt), ("at most", range.le), ("below", range.lt))
    return " and ".join(f"{word} {end}" for word, end in ends if end is not None)
