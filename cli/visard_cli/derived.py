"""Command-line parameters from options that are declared once, see `visard.declared`.

    @derived
    def swap(photos: ..., options: Annotated[Options, Fields(without=("max_pixels",))]) -> None: ...

The command takes `--faces`, `--direction` and so on in the place of `options`, and is called with an `Options`. A
parameter whose type has words (`Doc`) becomes an option as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from operator import itemgetter
from typing import Annotated, Any, cast

import typer
from annotated_types import Interval
from typing_extensions import get_type_hints

from visard.declared import bare, declared, words
from visard_cli.console import usage


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Which fields of a dataclass a command takes, those of dataclasses in it among them.

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
    makers: dict[str, Callable[[dict[str, Any]], Any]] = {}  # parameter → makes its value of what typer gives
    for parameter in signature(command).parameters.values():
        hint = hints[parameter.name]
        fields = next((each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Fields)), None)
        if fields is not None:
            if unknown := {*fields.without, *fields.names} - _names(bare(hint)):
                raise TypeError(f"{bare(hint).__name__} has no {', '.join(sorted(unknown))}")
            taken, makers[parameter.name] = _taken(bare(hint), fields)
            parameters += taken
        elif words(hint):
            parameters.append(_parameter(parameter.name, bare(hint), parameter.default, words(hint)))
        else:  # by name, so that one with a default may stand before one without
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hint))

    own = signature(command).parameters.keys() - makers.keys()

    @wraps(command)
    def called(**given: Any) -> None:
        made = usage(lambda: {name: make(given) for name, make in makers.items()})
        command(**made, **{name: given[name] for name in own})

    called.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called


def _names(options: type) -> set[str]:
    """A dataclass's fields, and those of the dataclasses in it."""
    return {option.name for option in declared(options)}.union(
        *(_names(cast("type", option.type)) for option in declared(options) if is_dataclass(option.type))
    )


def _taken(options: type, fields: Fields) -> tuple[list[Parameter], Callable[[dict[str, Any]], Any]]:
    """The parameters in the place of a dataclass and of those in it, and what makes it of their values."""
    parameters: list[Parameter] = []
    makers: dict[str, Callable[[dict[str, Any]], Any]] = {}
    for option in declared(options):
        if option.name in fields.without:
            continue
        if is_dataclass(option.type):
            taken, makers[option.name] = _taken(cast("type", option.type), fields)
            parameters += taken
            continue
        if not option.words:
            raise TypeError(f"{options.__name__}.{option.name} has no words: say in a Doc what it does")
        default = Parameter.empty if option.default is MISSING else option.default
        name = fields.names.get(option.name, option.name)
        parameters.append(_parameter(name, option.type, default, option.words, option.range))
        makers[option.name] = itemgetter(name)
    return parameters, lambda given: options(**{name: make(given) for name, make in makers.items()})


def _parameter(name: str, type_: Any, default: Any, words: str, range: Interval | None = None) -> Parameter:
    # Of a switch that is off typer would make --no-… too, which says nothing.
    flags = [f"--{name.replace('_', '-')}"] if type_ is bool and not default else []
    low, high = (None, None) if range is None else (range.ge, range.le)  # it knows no open ends: see `check`
    option = typer.Option(*flags, help=words, min=low, max=high)  # type: ignore[arg-type]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[type_, option])
