"""`visard swap --dry-run`: what would become of each face, and the picture that shows it."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from visard.options import Options
from visard.pipeline import find
from visard_cli.app import app
from visard_cli.dry_run import _STYLES, picture, plans_of, problem_of
from visard_errors import FaceTooSmall, NoFace
from visard_testing.command_line import visard

NO_SERVER = ("--server", "127.0.0.1:9")  # whoever asks it ends with 4
COLOURS = {outcome: colour for outcome, (_, colour) in _STYLES.items()}


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_it_draws_boxes_and_anonymises_nothing(astronaut, tmp_path):
    (tmp_path / "text.jpg").write_text("not a photo")
    Image.new("RGB", (300, 200)).save(tmp_path / "black.png")
    Image.open(astronaut).save(tmp_path / "astronaut.png")
    photos = [tmp_path / name for name in ("astronaut.png", "black.png", "text.jpg")]
    command = ("swap", *photos, "-o", tmp_path / "look", "--dry-run", *NO_SERVER)
    run = visard(*command)
    assert run.returncode == 3, run.stderr  # for the one without a face
    assert "show the originals" in run.stderr
    assert "1/1" in run.stdout
    assert "black.png: NoFace" in run.stderr
    assert "text.jpg: UnsupportedFormat" in run.stderr
    assert sorted(path.name for path in (tmp_path / "look").iterdir()) == ["astronaut_boxes.png", "black_boxes.png"]

    before, drawn = pixels(astronaut), pixels(tmp_path / "look" / "astronaut_boxes.png")
    assert drawn.shape[0] > 512  # the legend
    changed = (drawn[:512] != before).any(axis=2)
    left, top, right, bottom = 175, 84, 267, 175
    assert (drawn[bottom, left:right] == COLOURS["swapped"]).all()
    assert (drawn[top:bottom, right] == COLOURS["swapped"]).all()
    assert not changed[top + 5 : bottom - 5, left + 5 : right - 5].any()
    assert changed.mean() < 0.05

    run = CliRunner().invoke(app, [*map(str, command), "--json"])
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert [line["photo"] for line in lines] == list(map(str, photos))
    (face,) = lines[0]["faces"]
    assert [round(edge) for edge in face["box"]] == [left, top, right, bottom]
    assert (face["would_be"], face["reason"], face["by_hand"]) == ("swapped", None, False)
    assert face["score"] == pytest.approx(0.94, abs=0.01)
    assert [line.get("error") for line in lines] == [None, "NoFace", "UnsupportedFormat"]
    run = CliRunner().invoke(app, ["swap", str(photos[0]), "-o", str(tmp_path / "one.png"), "--dry-run", *NO_SERVER])
    assert run.exit_code == 0
    assert (tmp_path / "one_boxes.png").is_file()
    assert not (tmp_path / "one.png").exists()


def test_it_never_takes_the_place_of_a_photo(astronaut, tmp_path):
    for name in ("a.jpg", "a_boxes.jpg"):
        (tmp_path / name).write_bytes(astronaut.read_bytes())
    photos = [str(tmp_path / name) for name in ("a.jpg", "a_boxes.jpg")]
    run = CliRunner().invoke(app, ["swap", *photos, "-o", str(tmp_path), "--dry-run"])
    assert run.exit_code == 2
    assert "overwrite" in run.output
    assert (tmp_path / "a_boxes.jpg").read_bytes() == astronaut.read_bytes()


def test_each_choice_shows(astronaut):
    with Image.open(astronaut) as image:
        small = image.convert("RGB").resize((200, 200))
    two = np.zeros((512, 812, 3), np.uint8)
    two[:, :512] = pixels(astronaut)
    two[:200, 612:] = np.asarray(small)  # its face is below the smallest that can be swapped

    def planned(**options):
        options = Options(**options)
        found = find(two, options)
        plans = plans_of(found, options)
        return [plan.outcome for plan in plans], problem_of(plans, options), picture(two, plans, options.unswapped)

    outcomes, problem, drawn = planned()
    assert (outcomes, problem) == (["swapped", "covered"], None)
    assert {tuple(pixel) for pixel in drawn.reshape(-1, 3)} >= {COLOURS["swapped"], COLOURS["covered"]}
    outcomes, problem, drawn = planned(unswapped="show")
    assert (outcomes, problem) == (["swapped", "visible"], None)
    assert COLOURS["covered"] not in {tuple(pixel) for pixel in drawn.reshape(-1, 3)}
    outcomes, problem, _ = planned(unswapped="withhold")
    assert isinstance(problem, FaceTooSmall)
    outcomes, problem, _ = planned(faces="largest", unswapped="withhold")
    assert (outcomes, problem) == (["swapped", "visible"], None)
    assert isinstance(problem_of([], Options()), NoFace)
