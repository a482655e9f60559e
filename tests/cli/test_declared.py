"""Options that are declared once: what refuses wrong values, and what the command line and the query make of them."""

import math
from dataclasses import dataclass, fields
from typing import Annotated, Literal

import pytest
import typer
from annotated_types import Interval
from fastapi import FastAPI
from typer.testing import CliRunner
from typing_extensions import Doc

from visard import Connection, Options
from visard.declared import check, declared
from visard_cli.derived import Fields, derived
from visard_testing.command_line import visard
from visard_web.app import create_app
from visard_web.settings import Settings

Words = Annotated[str, Doc("An alias with words.")]


@dataclass(frozen=True, kw_only=True)
class Oven:
    dish: Annotated[Literal["bread", "cake"], Doc("What is baked.")]
    heat: Annotated[float, Interval(ge=50, le=250), Doc("In degrees.")] = 180.0
    rise: Annotated[float | None, Interval(gt=0), Doc("Hours before.")] = None
    n_loaves: Annotated[int, Interval(ge=1), Doc("At once.")] = 1
    fan_on: Annotated[bool, Doc("Move the air.")] = False
    note: Words = ""
    secret: int = 0

    def __post_init__(self):
        check(self)
        if self.fan_on and self.dish == "cake":
            raise ValueError("a cake dries out")


@derived
def bake(
    place: Annotated[str, typer.Argument()],
    *,
    oven: Annotated[Oven, Fields(without=("secret",), names={"n_loaves": "loaves"})],
    label: Words = "none",
):
    print(place, oven, label)


@dataclass(frozen=True, kw_only=True)
class Kitchen:
    oven: Annotated[Oven, Doc("Bakes.")]
    lamps: Annotated[int, Doc("Switched on.")] = 2


@derived
def cook(kitchen: Annotated[Kitchen, Fields(without=("secret", "lamps"), names={"n_loaves": "loaves"})]):
    print(kitchen)


def run(*arguments):
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.command()(bake)
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"dish": "soup"}, "dish must be one of bread, cake, not 'soup'"),
        ({"heat": 49}, r"heat must be 50\.\.250, not 49"),
        ({"heat": math.nan}, r"heat must be 50\.\.250, not nan"),
        ({"rise": 0}, "rise must be above 0, not 0"),
        ({"n_loaves": 0}, "n_loaves must be at least 1, not 0"),
    ],
)
def test_what_is_not_declared_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Oven(**{"dish": "bread", **wrong})


def test_the_ends_of_a_range_belong_to_it():
    assert Oven(dish="cake", heat=50, rise=1e-9).heat == 50
    assert Oven(dish="cake", heat=250).heat == 250


def test_a_command_gets_its_options_made():
    done = run("home", "--dish", "bread", "--heat", "200", "--loaves", "3", "--fan-on", "--label", "x")
    assert done.output.strip() == f"home {Oven(dish='bread', heat=200.0, n_loaves=3, fan_on=True)} x"
    assert run("home", "--dish", "cake").output.strip() == f"home {Oven(dish='cake')} none"


def test_a_dataclass_in_a_dataclass_is_taken_apart_and_made():
    app = typer.Typer()
    app.command()(cook)
    done = CliRunner().invoke(app, ["--dish", "cake", "--loaves", "2"])
    assert done.output.strip() == str(Kitchen(oven=Oven(dish="cake", n_loaves=2)))
    assert CliRunner().invoke(app, ["--dish", "cake", "--fan-on"]).exit_code == 2


def test_help_shows_what_is_declared():
    said = " ".join(run("--help").output.split())
    for words in (
        "--dish <bread|cake> What is baked. [required]",
        "--heat <float range> In degrees. [default: 180.0; 50<=x<=250]",
        "--rise <float> Hours before. --",
        "--loaves <int range> At once. [default: 1; x>=1]",
        "--fan-on Move the air. --",
        "--note <str> An alias with words. --",
        "--label <str> An alias with words. [default: none]",
    ):
        assert words in said
    assert "secret" not in said


@pytest.mark.parametrize(
    "wrong",
    [
        ["--dish", "soup"],
        ["--dish", "bread", "--heat", "300"],
        ["--dish", "bread", "--rise", "0"],  # an open end, which typer does not know
        ["--dish", "cake", "--fan-on"],
        ["--dish", "bread", "--secret", "1"],
        ["--dish", "bread", "--no-fan-on"],
        [],
    ],
)
def test_wrong_options_are_wrong_usage(wrong):
    assert run("home", *wrong).exit_code == 2
    assert run("home", "--dish", "bread").exit_code == 0


def test_mistakes_in_a_declaration_are_found_when_the_command_is_made():
    def wordless(oven: Annotated[Oven, Fields()]):
        pass

    def unknown(oven: Annotated[Oven, Fields(without=("secret", "gone"))]):
        pass

    with pytest.raises(TypeError, match=r"Oven\.secret has no words"):
        derived(wordless)
    with pytest.raises(TypeError, match="Oven has no gone"):
        derived(unknown)


def test_every_option_of_a_photo_has_words():
    assert [option.name for option in declared(Options)] == [field.name for field in fields(Options)]
    assert all(option.words.endswith(".") for option in declared(Options))


def test_the_query_is_what_the_options_declare():
    app: FastAPI = create_app(Connection(), Settings())
    parameters = app.openapi()["paths"]["/v1/anonymize"]["post"]["parameters"]
    query = {each["name"]: each for each in parameters if each["in"] == "query"}
    own = {"format", "box", "choice"}  # what REST alone has
    assert set(query) == {
        "faces",
        "direction",
        "min_confidence",
        "unswapped",
        "cover",
        "output",
        "identity",
        "detector_threshold",
        "keep",
        *own,
    }
    assert query["faces"]["schema"]["enum"] == ["all", "largest"]
    assert query["min_confidence"]["schema"]["minimum"] == 0.5
    assert query["min_confidence"]["schema"]["maximum"] == 1
    options = {option.name: option for option in declared(Options)}
    for name in query.keys() - own:
        assert query[name]["schema"]["default"] == getattr(Options(), name)
        assert query[name]["description"] == options[name].words


def test_help_of_swap_and_folder_shows_the_same_choices_and_environment():
    for command in ("swap", "folder"):
        said = " ".join(visard(command, "--help").stdout.replace("│", " ").split())
        ranges = "[0.3<=x<=0.95]", "[0.5<=x<=1.0]"
        for words in ("<opposite|to_male|to_female>", *ranges, "[env var: VISARD_PERSONA_KEY]"):
            assert words in said
