"""Command-line parameters from options that are declared once, see `visard.declared`.

    @derived
    def swap(photos: ..., options: Annotated[Options, Fields(without=("max_pixels",))]) -> None: ...

The command takes `--faces`, `--direction` and so on in the place of `options`, and is called with an `Options`. A
parameter whose type has words (`Doc`) becomes an option as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any

import typer
from annotated_types import Interval
from typing_extensions import get_type_hints

from visard.declared import bare, declared, words
from visard_cli.console import usage


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Which fields of a dataclass a command takes.

    Attributes:
        without: those that are not taken and keep their defaults.
        names: field → what it is called on the command line, where that is not its name.
    """

    without: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)


def derived(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the signature that typer is to read; a value that a dataclass refuses is a usage error.

    Raises:
        TypeError: a field that is taken has no words, or `Fields` names one that is not there.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: list[Parameter] = []
    made: dict[str, tuple[type, dict[str, str]]] = {}  # parameter → its dataclass, field → name on the command line
    for parameter in signature(command).parameters.values():
        hint = hints[parameter.name]
        fields = next((each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Fields)), None)
        if fields is not None:
            taken = _taken(bare(hint), fields)
            made[parameter.name] = bare(hint), {name: each.name for name, each in taken.items()}
            parameters += taken.values()
        elif words(hint):
            parameters.append(_parameter(parameter.name, bare(hint), parameter.default, words(hint)))
        else:  # by name, so that one with a default may stand before one without
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hint))

    @wraps(command)
    def called(**given: Any) -> None:
        for name, (options, names) in made.items():
            values = {field: given.pop(taken) for field, taken in names.items()}
            given[name] = usage(lambda options=options, values=values: options(**values))  # type: ignore[misc]
        command(**given)

    called.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called


def _taken(options: type, fields: Fields) -> dict[str, Parameter]:
    """The parameters in the place of a dataclass, by its fields."""
    there = {option.name: option for option in declared(options)}
    if unknown := {*fields.without, *fields.names} - there.keys():
        raise TypeError(f"{options.__name__} has no {', '.join(sorted(unknown))}")
    taken = {}
    for name, option in there.items():
        if name in fields.without:
            continue
        if not option.words:
            raise TypeError(f"{options.__name__}.{name} has no words: say in a Doc what it does")
        default = Parameter.empty if option.default is MISSING else option.default
        taken[name] = _parameter(fields.names.get(name, name), option.type, default, option.words, option.range)
    return taken


def _parameter(name: str, type_: Any, default: Any, words: str, range: Interval | None = None) -> Parameter:
    flags = [f"--{name.replace('_', '-')}"] if type_ is bool else []  # alone, typer would add --no-…
    low, high = (None, None) if range is None else (range.ge, range.le)  # it knows no open ends: see `check`
    option = typer.Option(*flags, help=words, min=low, max=high)  # type: ignore[arg-type]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[type_, option])
