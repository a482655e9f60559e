"""The end user's notebook: clean as committed, and run in a real kernel with a real server and tiny models."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import subprocess
from io import BytesIO
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image, ImageOps

from visard import Client, Options
from visard_testing.tiny_models import tiny_repository

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "end_user.ipynb"

CHOOSE = """
import datetime
content = open({path!r}, "rb").read()
upload.value = [dict(name="photo", type="", size=len(content), content=content, last_modified=datetime.datetime.now())]
"""
KNOCK = """
import socket
host, port = server.grpc_url.split(":")
with socket.socket() as knock:
    print("answers" if knock.connect_ex((host, int(port))) == 0 else "refused")
"""
ROW = re.compile(
    r"\| \*\*face (?P<number>\d+)\*\* \| (?P<before>\w+), (?P<before_sure>[\d.]+)% "
    r"\| (?P<still>\*\*still\*\* )?(?P<after>\w+), (?P<after_sure>[\d.]+)% "
    r"\| (?P<distance>[\d.]+) \| (?P<recognised>\*\*yes\*\*|no) \| (?P<similarity>[\d.]+) % \| (?P<cosine>-?[\d.]+) \|"
)


def read_notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def cell(notebook, name):
    return next(cell for cell in notebook.cells if cell.id == name)


def insert_after(notebook, name, source):
    index = notebook.cells.index(cell(notebook, name))
    notebook.cells.insert(index + 1, nbformat.v4.new_code_cell(source, id=f"after-{name}"))


def run(notebook, folder):
    NotebookClient(notebook, timeout=600, store_widget_state=False, resources={"metadata": {"path": folder}}).execute()


def outputs(notebook, name, kind):
    return [o["data"][kind] for o in cell(notebook, name).outputs if kind in o.get("data", {})]


def figures(notebook, name):
    pictures = [Image.open(BytesIO(base64.b64decode(data))) for data in outputs(notebook, name, "image/png")]
    return [np.asarray(picture.convert("RGB")) for picture in pictures]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Tiny models instead of the demo ones, and IPython's own files out of the way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISARD_MODELS", str(tiny_repository(tmp_path_factory.mktemp("notebook") / "models")))
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        yield


@pytest.fixture(scope="module")
def executed(environment, tmp_path_factory):
    notebook = read_notebook()
    insert_after(notebook, "gender", KNOCK)
    insert_after(notebook, "end", KNOCK)
    folder = tmp_path_factory.mktemp("run")
    run(notebook, folder)
    assert list(folder.iterdir()) == []  # nothing on disk that the user did not name
    return notebook


def test_nothing_of_a_run_is_committed():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert notebook["metadata"]["kernelspec"] == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert notebook["metadata"]["language_info"] == {"name": "python"}
    assert any(cell["cell_type"] == "code" for cell in notebook["cells"])
    for each in notebook["cells"]:
        assert set(each["metadata"]) <= {"cellView", "jupyter"}
        assert not each.get("outputs")
        assert each.get("execution_count") is None


def test_shows_every_stage_on_the_sample(executed):
    counts = {name: len(figures(executed, name)) for name in ("alignment", "gender", "faces", "numbers")}
    assert counts == {"alignment": 1, "gender": 1, "faces": 2, "numbers": 1}
    for name in counts:
        assert all(figure.std() > 10 for figure in figures(executed, name))  # something is drawn


def test_box_and_square_are_drawn(executed):
    (figure,) = figures(executed, "alignment")
    for colour in ((255, 176, 0), (0, 194, 168)):
        assert (np.abs(figure.astype(int) - colour).max(axis=2) < 8).sum() > 100


def test_before_and_after_differ_in_the_picture(executed):
    faces, photos = figures(executed, "faces")
    thirds = np.array_split(faces[:, : faces.shape[1] // 3 * 3], 3, axis=1)
    assert thirds[1].mean() < thirds[0].mean() - 20  # the face is bright, to the tiny models male: it becomes darker
    left, right = np.array_split(photos[:, : photos.shape[1] // 2 * 2], 2, axis=1)
    assert right.mean() < left.mean() - 1


def test_a_result_shows_itself_without_the_original(executed, tiny_server, astronaut):
    with Client(tiny_server.grpc_url) as client:
        expected = client.anonymize(astronaut)._repr_jpeg_()
    assert [base64.b64decode(data) for data in outputs(executed, "shown", "image/jpeg")] == [expected]
    (page,) = outputs(executed, "shown", "text/html")
    assert re.findall(r"base64,([^\"]+)", page) == [base64.b64encode(expected).decode()]
    assert "<td>swapped</td>" in page


def assert_scores(notebook, client, photo):
    """Every figure in the table is the client's for the same photo, as far as it is printed."""
    (table,) = outputs(notebook, "numbers", "text/markdown")
    rows = [match.groupdict() for match in ROW.finditer(table)]
    faces = client.anonymize(photo, Options(identity=True)).faces
    assert len(rows) == len(faces) >= 1
    for row, face in zip(rows, faces, strict=True):
        assert (row["before"], row["after"]) == (face.gender.label, face.swapped_gender.label)
        assert float(row["before_sure"]) == pytest.approx(100 * face.gender.confidence, abs=0.051)
        assert float(row["after_sure"]) == pytest.approx(100 * face.swapped_gender.confidence, abs=0.051)
        assert (row["still"] is None) == face.flipped
        assert float(row["distance"]) == pytest.approx(face.identity_distance, abs=0.00051)
        assert ("yes" in row["recognised"]) == face.same_person
        assert float(row["similarity"]) == pytest.approx(face.similarity_percent, abs=0.0051)
        assert float(row["cosine"]) == pytest.approx(face.pixel_cosine, abs=0.00051)
    return rows


def test_scores_are_the_clients(executed, tiny_server, astronaut):
    with Client(tiny_server.grpc_url) as client:
        (row,) = assert_scores(executed, client, astronaut)
    assert row["before"] != row["after"]


def test_the_last_cell_ends_the_server(executed):
    assert cell(executed, "after-gender").outputs[0]["text"] == "answers\n"
    assert cell(executed, "after-end").outputs[0]["text"] == "refused\n"


def test_takes_an_uploaded_photo_and_saves_where_told(environment, executed, tiny_server, astronaut, tmp_path):
    photo = tmp_path / "mirrored.png"
    ImageOps.mirror(Image.open(astronaut)).save(photo)
    notebook = read_notebook()
    insert_after(notebook, "upload", CHOOSE.format(path=str(photo)))
    save = cell(notebook, "save")
    save.source = save.source.replace('SAVE_AS = ""', 'SAVE_AS = "anonymised.png"')
    run(notebook, tmp_path)
    with Client(tiny_server.grpc_url) as client:
        assert_scores(notebook, client, photo)
        expected = client.anonymize(photo).photo
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "anonymised.png")), expected)
    assert "Image saved" in cell(notebook, "save").outputs[0]["text"]
    assert outputs(notebook, "numbers", "text/markdown") != outputs(executed, "numbers", "text/markdown")


def test_an_unusable_photo_is_said_in_plain_words(environment, tmp_path):
    photo = tmp_path / "grey.png"
    Image.new("RGB", (300, 300), "grey").save(photo)
    notebook = read_notebook()
    insert_after(notebook, "upload", CHOOSE.format(path=str(photo)))
    with pytest.raises(CellExecutionError):  # the page stops here
        run(notebook, tmp_path)
    assert "no face was found" in outputs(notebook, "alignment", "text/markdown")[0]
    assert all(output["output_type"] == "display_data" for output in cell(notebook, "alignment").outputs)
    assert cell(notebook, "gender").outputs == []


@pytest.mark.parametrize(("folder", "wanted"), [(ROOT / "notebooks", f"{ROOT}[serve]"), (Path("/"), "visard[serve]")])
def test_installs_from_the_checkout_or_the_index(folder, wanted, monkeypatch, capsys):
    commands = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    source = cell(read_notebook(), "install").source
    exec(compile(source, "install", "exec"), {})
    assert commands[0][1:4] == ["-m", "pip", "install"]
    assert wanted in commands[0]
    assert "Installing" in capsys.readouterr().out


def test_installs_nothing_where_all_is_there(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("it installs"))
    exec(compile(cell(read_notebook(), "install").source, "install", "exec"), {})
