"""Boxes by hand and other personas through the page's own endpoints, without a browser."""

from __future__ import annotations

import io
from dataclasses import replace

import httpx
import numpy as np
import pytest
from PIL import Image

from visard import judgement
from visard_preprocess.photo import read_photo
from visard_testing.web_server import web_server

HEAD, WALL = [150, 20, 300, 190], [20, 350, 120, 460]


@pytest.fixture(scope="module")
def http(tiny_server):
    with web_server(tiny_server.grpc_url) as url, httpx.Client(base_url=url, timeout=60) as http:
        yield http


@pytest.fixture(scope="module")
def two_faces(astronaut):
    buffer = io.BytesIO()
    Image.fromarray(np.hstack([read_photo(astronaut)[:300]] * 2)).save(buffer, "PNG")
    return buffer.getvalue()


def upload(http, photo):
    answer = http.post("/page/photos", files={"photo": ("photo", photo)}, data={"consent": "yes"})
    assert answer.status_code == 201, answer.text
    return answer.json()


def draw(http, name, *boxes):
    return http.post(f"/page/photos/{name}/boxes", json={"boxes": boxes})


def test_boxes_are_drawn_and_taken_away(http, astronaut):
    photo = upload(http, astronaut.read_bytes())
    name = photo["id"]
    assert not photo["faces"][0]["by_hand"]
    http.post(f"/page/photos/{name}/anonymize", json={})
    detected, drawn = draw(http, name, WALL).json()["faces"]
    assert detected == photo["faces"][0]
    assert (drawn["index"], drawn["box"], drawn["by_hand"], drawn["reason"]) == (1, WALL, True, "unclear")
    assert http.get(f"/page/photos/{name}/after").status_code == 404  # it would show what was drawn
    assert http.get(f"/page/photos/{name}/faces/1").status_code == 200
    outcomes = http.post(f"/page/photos/{name}/anonymize", json={}).json()["faces"]
    assert [(face["outcome"], face["reason"]) for face in outcomes] == [("swapped", None), ("covered", "unclear")]
    after = read_photo(http.get(f"/page/photos/{name}/after").content)
    change = np.abs(after.astype(int) - read_photo(astronaut))
    assert change[360:450, 30:110].any(axis=2).mean() > 0.9
    assert len(draw(http, name, HEAD).json()["faces"]) == 1  # there is a face already, and the other box is gone


def test_a_photo_without_faces_is_kept_and_can_be_drawn_on(http):
    buffer = io.BytesIO()
    Image.new("RGB", (200, 200), "slategray").save(buffer, "PNG")
    photo = upload(http, buffer.getvalue())
    assert photo["faces"] == []
    answer = http.post(f"/page/photos/{photo['id']}/anonymize", json={})
    assert (answer.status_code, answer.json()["error"]) == (422, "NoFace")
    draw(http, photo["id"], [20, 20, 120, 130])
    (face,) = http.post(f"/page/photos/{photo['id']}/anonymize", json={}).json()["faces"]
    assert (face["outcome"], face["reason"]) == ("covered", "unclear")


@pytest.mark.parametrize(
    ("boxes", "error"),
    [
        ([[0, 0, 9]], "InvalidRequest"),
        ([["a", 0, 9, 9]], "InvalidRequest"),
        ([[5, 5, 5, 9]], "InvalidRequest"),
        ([[0, 0, 9, 9]] * 101, "InvalidRequest"),
        ([[0, 0, 9, 513]], "BoxOutsidePhoto"),
    ],
)
def test_boxes_that_cannot_be_used_change_nothing(http, astronaut, boxes, error):
    name = upload(http, astronaut.read_bytes())["id"]
    draw(http, name, WALL)
    answer = draw(http, name, *boxes)
    assert (answer.status_code, answer.json()["error"]) == (422, error)
    assert http.get(f"/page/photos/{name}/faces/1").status_code == 200


def test_another_persona_for_those_that_need_one_alone(http, two_faces, monkeypatch):
    """The second face does not flip at first; the first one keeps what it has."""
    judged, refused = judgement.judged, {1}

    def strict(face, *rest):
        return replace(judged(face, *rest), reason="not_flipped" if face.index in refused else None)

    monkeypatch.setattr(judgement, "judged", strict)
    name = upload(http, two_faces)["id"]
    directions = {"faces": [{"index": 1, "direction": "to_male"}]}
    assert http.post(f"/page/photos/{name}/again").json()["error"] == "NotAnonymized"
    before = http.post(f"/page/photos/{name}/anonymize", json=directions).json()["faces"]
    assert [(face["outcome"], face["reason"]) for face in before] == [("swapped", None), ("covered", "not_flipped")]
    first = http.get(f"/page/photos/{name}/faces/0/swapped").content

    refused = {0}  # alone, it has number 0
    again = http.post(f"/page/photos/{name}/again").json()["faces"]
    assert again == before

    refused = set()
    again = http.post(f"/page/photos/{name}/again").json()["faces"]
    assert again[0] == before[0]
    assert (again[1]["outcome"], again[1]["target"], again[1]["index"]) == ("swapped", "male", 1)
    assert http.get(f"/page/photos/{name}/faces/0/swapped").content == first
    after = read_photo(http.get(f"/page/photos/{name}/after").content)
    change = np.abs(after.astype(int) - read_photo(two_faces))
    assert change[:, :512].max() > 50
    assert change[:, 512:].max() > 50
    assert http.post(f"/page/photos/{name}/again").json()["faces"] == again  # there is nothing left to try
