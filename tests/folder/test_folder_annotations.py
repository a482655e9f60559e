"""Annotations carried along by `visard folder`: geometry kept, the gender changed, nothing that leads back."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest

from visard_errors import DataError
from visard_folder.annotations import Annotations
from visard_folder.journal import FaceRecord, Journal, Record


def record(path, outcome="anonymised", **changes):
    return Record(path=path, outcome=outcome, **changes)


FACE = FaceRecord(box=(1, 2, 3, 4), outcome="swapped", target="male", gender_confidence=0.9)


@pytest.fixture
def annotated(tmp_path):
    """A finished run: a swapped face, a covered one, a kept one, and a photo that was withheld."""
    faces = {
        "to_male.jpg": replace(FACE, box=(100, 100, 200, 200), target="male"),
        "sub/to_female.jpg": replace(FACE, box=(100, 100, 200, 200), target="female"),
        "covered.jpg": replace(FACE, box=(100, 100, 200, 200), outcome="covered", reason="too_small", target=None),
        "kept.jpg": replace(FACE, box=(100, 100, 200, 200), outcome="visible", reason="chosen", target=None),
    }
    with Journal(tmp_path / "out", {}) as journal:
        for path, face in faces.items():
            journal.add(record(path, faces_found=1, faces=(face,), width=640, height=480, size_bytes=1))
        journal.add(record("withheld.jpg", "withheld"))
        yield journal


PHOTOS = ["to_male.jpg", "sub/to_female.jpg", "covered.jpg", "kept.jpg", "withheld.jpg", "unknown.jpg"]


def carried_table(journal, tmp_path, header, rows, **options):
    path = tmp_path / "attributes.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    annotations = Annotations(tables=(path,), **options)
    annotations.check()
    notices = []
    (written,) = annotations.carry(journal, notices.append)
    with written.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file)), notices


@pytest.mark.parametrize(
    ("column", "male", "female"),
    [("Male", "1", "-1"), ("Male", "1", "0"), ("Gender", "Man", "Woman"), ("sex", "m", "f")],
)
def test_table_gets_the_new_gender(annotated, tmp_path, column, male, female):
    rows = [f"{photo},{female if photo != 'sub/to_female.jpg' else male},x,12" for photo in PHOTOS]
    table, notices = carried_table(annotated, tmp_path, f"image_id,{column},Smiling,lefteye_x", rows)
    assert {row["image_id"]: row[column] for row in table} == {
        "to_male.jpg": male,
        "sub/to_female.jpg": female,
        "covered.jpg": "",  # nobody can see one
        "kept.jpg": female,  # as it was
    }
    assert all(row["Smiling"] == "x" and row["lefteye_x"] == "12" for row in table)
    assert "4 photos carried, 2 left out" in notices[0]


def test_table_without_a_gender_is_carried_as_it_is(annotated, tmp_path):
    table, _ = carried_table(annotated, tmp_path, "file,nose_x", ["to_male.jpg,3"])
    assert table == [{"file": "to_male.jpg", "nose_x": "3"}]


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("file,gender\na.jpg,7\n", {}, "which gender"),
        ("file,gender\na.jpg,0\nb.jpg,1\n", {}, "which gender"),
        ("file,gender\na.jpg\n", {}, "line 2"),
        ("file,x\na.jpg,1\n", {"gender": "Male"}, "Male"),
        ("", {}, "empty"),
        ("file,\xff", {}, "UTF-8"),
    ],
)
def test_table_that_cannot_be_used_is_refused_before_the_work(tmp_path, text, options, words):
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=words):
        Annotations(tables=(path,), **options).check()


def test_coco_keeps_geometry_and_gets_the_new_gender(annotated, tmp_path):
    images = [
        {"id": i, "file_name": name, "width": 640, "height": 480, "coco_url": "http://x/original.jpg", "license": 1}
        for i, name in enumerate(PHOTOS)
    ]
    images.append({"id": 99, "file_name": "kept.jpg", "width": 480, "height": 640})  # turned by its EXIF orientation
    keypoints = [150, 140, 2] * 17
    annotations = [
        {
            "id": 10 + i,
            "image_id": i,
            "category_id": 2 if name == "sub/to_female.jpg" else 1,
            "bbox": [60, 60, 200, 400],
            "keypoints": keypoints,
            "caption": "Alice at home",
            "attributes": {"Gender": "Male" if name == "sub/to_female.jpg" else "Female", "smiling": True},
        }
        for i, name in enumerate(PHOTOS)
    ]
    annotations.append({"id": 50, "image_id": 0, "category_id": 1, "bbox": [400, 300, 20, 20], "attributes": {}})
    path = tmp_path / "coco.json"
    categories = [{"id": 1, "name": "woman"}, {"id": 2, "name": "man"}, {"id": 3, "name": "dog"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    carrier = Annotations(coco=(path,))
    carrier.check()
    notices = []
    (written,) = carrier.carry(annotated, notices.append)
    text = written.read_text()
    assert "Alice" not in text
    assert "http" not in text
    result = json.loads(text)
    assert [image["file_name"] for image in result["images"]] == PHOTOS[:4]
    by_id = {annotation["id"]: annotation for annotation in result["annotations"]}
    assert set(by_id) == {10, 11, 12, 13, 50}
    assert by_id[10]["keypoints"] == keypoints
    assert by_id[10]["bbox"] == [60, 60, 200, 400]
    assert [(by_id[i]["category_id"], by_id[i]["attributes"]["Gender"]) for i in range(10, 14)] == [
        (2, "Male"),
        (1, "Female"),
        (1, None),
        (1, "Female"),
    ]
    assert by_id[50]["category_id"] == 1  # no face in that box
    assert "left out" in notices[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"images": [{}], "annotations": []}',
        '{"images": 3, "annotations": 4}',
        '{"images": [], "annotations": [{"bbox": [1, 2, 3]}]}',
        '{"images": [], "annotations": [{"bbox": "left"}]}',
    ],
)
def test_coco_that_cannot_be_used_is_refused_before_the_work(tmp_path, text):
    (tmp_path / "coco.json").write_text(text)
    with pytest.raises(DataError, match="COCO"):
        Annotations(coco=(tmp_path / "coco.json",)).check()
