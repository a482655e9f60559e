"""Boxes by hand for a folder: the table that they stand in, and a run that is resumed with other ones."""

from __future__ import annotations

import csv
import json

import pytest
from PIL import Image

from visard_errors import DataError
from visard_folder import boxes as boxes_module
from visard_folder import load_boxes
from visard_testing.command_line import visard
from visard_testing.folder_trees import face_photo, outputs


def table(tmp_path, *lines):
    path = tmp_path / "boxes.csv"
    path.write_bytes("\r\n".join([*lines, ""]).encode("utf-8", "surrogateescape"))
    return path


def test_boxes_by_file(tmp_path):
    path = table(
        tmp_path,
        "left,top,right,bottom,file,score",
        '1,2,30.5,40,"a, b/ü.jpg",.9',
        "5,6,70,80,c.png,",
        '1,2,9,9,"a, b/ü.jpg",x',
    )
    assert load_boxes(path) == {
        "a, b/ü.jpg": ((1.0, 2.0, 30.5, 40.0), (1.0, 2.0, 9.0, 9.0)),
        "c.png": ((5.0, 6.0, 70.0, 80.0),),
    }
    assert load_boxes(table(tmp_path, "file,left,top,right,bottom")) == {}


HEADER = "file,left,top,right,bottom"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "is empty"),
        (["file,left,top,rigth,bottom", "a,1,2,30,40"], "no column right among file, left, top, rigth, bottom"),
        (["a.jpg,1,2,30,40"], "no column file, left, top, right, bottom"),
        ([HEADER, "a,1,2,30,40", "b,1,2,30"], "line 3 has another number of cells"),
        ([HEADER, "a,1,2,30,forty"], r"line 2: boxes must have left.*not '1,2,30,forty'"),
        ([HEADER, "a,1,2,30,40", '"b\nb",30,2,1,40'], "line 4: boxes must be at least one pixel"),
        ([HEADER, "a,1,2,30,nan"], "line 2"),
        ([HEADER, ",1,2,30,40"], "line 2: file is empty"),
        ([HEADER, *["a,1,2,30,40"] * 101], "line 102: 'a' has more than 100 boxes"),
        ([HEADER, *[f"{n},1,2,30,40" for n in range(7)]], "line 8: there are more than 6"),
        ([HEADER, "\udcff,1,2,30,40"], "not a CSV file in UTF-8"),
        ([HEADER, '"a,1,2,30,40'], "not a CSV file"),
    ],
)
def test_a_table_that_cannot_be_used_names_the_line(tmp_path, monkeypatch, lines, words):
    monkeypatch.setattr(boxes_module, "_MOST", 101 if len(lines) > 50 else 6)
    with pytest.raises(DataError, match=words):
        load_boxes(table(tmp_path, *lines))


def test_a_run_is_resumed_with_boxes_that_were_drawn_meanwhile(tiny_server, astronaut, tmp_path):
    """Somebody looks at the results, draws what was missed, and only those photos are done again."""
    source, target = tmp_path / "src", tmp_path / "out"
    source.mkdir()
    for name in ("a.png", "b.png"):
        face_photo(astronaut).save(source / name)
    Image.new("RGB", (200, 200), "slategray").save(source / "nobody.png")

    def run(*lines):
        boxes = ("--boxes", table(tmp_path, HEADER, *lines)) if lines else ()
        ended = visard("folder", source, target, "--server", tiny_server.grpc_url, "--json", *boxes)
        with (target / ".visard" / "manifest.csv").open(newline="", encoding="utf-8") as file:
            faces = {row["path"]: json.loads(row["faces"]) for row in csv.DictReader(file)}
        return ended, json.loads(ended.stdout), faces

    ended, summary, _ = run()
    assert (ended.returncode, summary["outcomes"]["withheld"], summary["boxes_unused"]) == (3, 1, [])
    first = outputs(target)

    nobody, b = "nobody.png,20,20,90,100", "b.png,200,200,258,259"
    ended, summary, faces = run(nobody, b)
    assert (ended.returncode, summary["done_before"]) == (0, 1)
    assert [(face["box"], face["outcome"], face["reason"]) for face in faces["nobody.png"]] == [
        ([20, 20, 90, 100], "covered", "unclear")
    ]
    assert [face["outcome"] for face in faces["b.png"]] == ["swapped", "covered"]
    second = outputs(target)
    assert second["a.png"] == first["a.png"]
    assert second["b.png"] != first["b.png"]
    assert second["nobody.png"] != (source / "nobody.png").read_bytes()

    assert run(nobody, b)[1]["done_before"] == 3
    assert run()[1]["done_before"] == 3  # what was hidden once does not come back because the option was forgotten
    assert outputs(target) == second

    # A file that is not there is named at the end, loudly; a box that leaves its photo takes the photo away.
    ended, summary, faces = run("B.png,1,2,30,40", "a.png,1,2,30,4000", nobody)
    assert (ended.returncode, summary["boxes_unused"], summary["done_before"]) == (3, ["B.png"], 1)
    assert "'B.png' were NOT used" in ended.stderr
    assert summary["errors"] == {"BoxOutsidePhoto": 1}
    assert sorted(outputs(target)) == ["b.png", "nobody.png"]
    assert [face["outcome"] for face in faces["b.png"]] == ["swapped"]
