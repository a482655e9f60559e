"""What a person is to look at after a run: the list and the page, made of a journal and of results as they stand."""

from __future__ import annotations

import base64
import csv
import io
import os
from html.parser import HTMLParser

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

from visard_errors import PhotoError
from visard_folder import report
from visard_folder.journal import FaceRecord, Journal, Record
from visard_folder.places import results
from visard_folder.report import write_report
from visard_preprocess.files import one_line
from visard_testing.browser import chromium

HOSTILE = "new\nline [b]\x1b[31m\u202e\"'><script>alert(1)<\\b>&amp;.jpg"
BYTES = os.fsdecode(b"bytes\xff.png")
COLOURS = {  # of the results, by which a picture on the page is recognised
    HOSTILE: (200, 0, 0),
    "kept.png": (0, 200, 0),
    "clean.webp": (0, 0, 200),
    BYTES: (200, 200, 0),
    "sub/swapped.png": (0, 200, 200),
}
ORIGINAL = (255, 0, 255)


def face(outcome, reason=None):
    return FaceRecord(box=(10, 20, 60, 80), outcome=outcome, reason=reason)


def written(target, path, outcome, *faces):
    """A photo of 300×150 whose result stands in its place, in its own colour."""
    (target / path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (300, 150), COLOURS.get(path, ORIGINAL)).save(
        target / path, {".webp": "WEBP"}.get(path[-5:], "PNG")
    )
    size = (target / path).stat().st_size
    return Record(
        path=path, outcome=outcome, width=300, height=150, faces_found=len(faces), faces=faces, size_bytes=size
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An output folder with a photo of each kind, and files in it that are no results of this run."""
    target = tmp_path_factory.mktemp("finished") / "out"
    with Journal(target, {}) as journal:
        records = [
            written(target, HOSTILE, "visible", face("visible", "too_small"), face("covered", "unclear")),
            written(target, "kept.png", "anonymised", face("visible", "chosen"), face("swapped")),
            written(target, "clean.webp", "cleaned"),
            written(target, BYTES, "anonymised", face("covered", "not_flipped"), face("covered", "too_small")),
            written(target, "sub/swapped.png", "anonymised", face("swapped")),
            written(target, "replaced.png", "anonymised", face("swapped")),
            written(target, "gone.png", "anonymised", face("swapped")),
            Record(path="withheld.png", outcome="withheld", faces=(face("withheld", "unclear"),), message="a <reason>"),
            Record(path="failed.png", outcome="failed", error="CorruptPhoto", message="the photo is damaged"),
            Record(path="notes.txt", outcome="ignored"),
            written(target, "damaged.png", "anonymised", face("swapped")),
        ]
        for record in records:
            journal.add(record)
        (target / "gone.png").unlink()
        (target / "damaged.png").write_bytes(bytes(records[-1].size_bytes))
        for name in ("replaced.png", "withheld.png", "failed.png"):  # such as the original, put there by hand
            Image.fromarray(np.full((90, 90, 3), ORIGINAL, np.uint8)).save(target / name)
        files = write_report(journal, *results(target), pytest.fail)
    assert [path.relative_to(target).as_posix() for path in files] == [".visard/to_check.csv", ".visard/report.html"]
    return target


class Page(HTMLParser):
    """What a browser would show and load, by the group that it stands in."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.group, self.text = set(), [], "top", {"top": ""}
        self.pictures = {}  # what their text says → pixels
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        attributes = dict(attributes)
        assert not any(name.startswith("on") for name in attributes)
        if tag == "details":
            self.group = attributes["id"]
            self.text[self.group] = ""
        if tag == "a":
            self.links.append(attributes["href"])
        if tag == "img":
            kind, data = attributes["src"].split(",")
            assert kind == "data:image/webp;base64"
            self.pictures[attributes["alt"]] = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))

    def handle_data(self, data):
        self.text[self.group] += data


@pytest.fixture(scope="module")
def page(finished):
    return Page((finished / ".visard" / "report.html").read_text(encoding="utf-8"))


def listed(folder):
    with (folder / ".visard" / "to_check.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_list_has_every_face_and_photo_that_needs_a_look(finished):
    rows = [(row["file"], row["outcome"], row["reason"]) for row in listed(finished)]
    assert sorted(rows) == sorted(
        [
            (HOSTILE.replace("\\", "\\\\"), "visible", "too small to be swapped"),
            (HOSTILE.replace("\\", "\\\\"), "covered", "not seen clearly enough to be swapped"),
            ("kept.png", "visible", "as chosen"),
            ("bytes\\xff.png", "covered", "the swap did not flip it"),
            ("bytes\\xff.png", "covered", "too small to be swapped"),
            ("withheld.png", "withheld", "a <reason>"),
            ("failed.png", "failed", "the photo is damaged"),
        ]
    )
    boxes = {(row["left"], row["top"], row["right"], row["bottom"]) for row in listed(finished)}
    assert boxes == {("10", "20", "60", "80"), ("",) * 4}  # a photo that is not written has none


def test_the_page_begins_with_what_matters_most(page):
    assert list(page.text) == ["top", "visible", "kept", "cleaned", "covered", "withheld", "failed", "swapped"]
    assert "What became of 10 photos" in page.text["top"]
    assert "8 of them are in the results, 2 are not" in " ".join(page.text["top"].split())
    assert "A face that the detector did not see is in none of these numbers" in page.text["top"]
    assert "visible: too small to be swapped" in page.text["visible"]
    assert "visible: as chosen" in page.text["kept"]
    assert "covered: the swap did not flip it" in page.text["covered"]
    assert "a <reason>" in page.text["withheld"]
    assert "the photo is damaged" in page.text["failed"]
    assert "notes.txt" not in "".join(page.text.values())


def test_the_page_shows_results_alone(page):
    shown = {name.removeprefix("Result of "): pixels for name, pixels in page.pictures.items()}
    names = {name: one_line(name.replace("\\", "\\\\")) for name in COLOURS} | {BYTES: "bytes\\xff.png"}
    assert shown.keys() == set(names.values())
    for name, colour in COLOURS.items():
        assert shown[names[name]].shape == (150, 300, 3)
        assert np.abs(shown[names[name]].mean((0, 1)) - colour).max() < 10
    assert page.text["swapped"].count("The result is not there any more") == 3  # gone, another file, a damaged one


def test_the_page_runs_and_loads_nothing_whatever_files_are_called(page, finished):
    text = (finished / ".visard" / "report.html").read_text(encoding="utf-8")
    assert not {"script", "iframe", "object", "embed", "base", "form", "b"} & page.tags
    assert "default-src 'none'" in text
    assert "url(" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "new\\nline [b]\\x1b[31m\\u202e\"'><script>alert(1)<\\\\b>&amp;.jpg" in page.text["visible"]
    to_results = [link for link in page.links if not link.startswith("#")]
    assert "../bytes%FF.png" in to_results
    assert all(link.startswith("../") for link in to_results)
    # An original that is named nowhere, and the folder's place, stand in neither file.
    assert str(finished) not in text + str(listed(finished))


def test_of_many_photos_some_are_shown_evenly_and_all_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_MOST", 4)
    with Journal(tmp_path, {}) as journal:
        for index in range(10):
            journal.add(Record(path=f"{index}.jpg", outcome="withheld", message="no face"))
        for index in range(4):
            journal.add(Record(path=f"f{index}.jpg", outcome="failed", message="damaged"))
        write_report(journal, *results(tmp_path), pytest.fail)
    page = Page((tmp_path / ".visard" / "report.html").read_text(encoding="utf-8"))
    assert [f"{index}.jpg" in page.text["withheld"] for index in range(10)] == [
        index in (0, 3, 5, 8) for index in range(10)
    ]
    assert "4 of them are shown here" in page.text["withheld"]
    assert "to_check.csv names all" in page.text["withheld"]
    assert all(f"f{index}.jpg" in page.text["failed"] for index in range(4))
    assert "shown here" not in page.text["failed"]
    assert len(listed(tmp_path)) == 14


def test_an_empty_run_has_a_page_too(tmp_path):
    with Journal(tmp_path, {}) as journal:
        write_report(journal, *results(tmp_path), pytest.fail)
    assert "What became of 0 photos" in (tmp_path / ".visard" / "report.html").read_text(encoding="utf-8")
    assert listed(tmp_path) == []


def test_without_jinja2_there_is_the_list_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    said = []
    with Journal(tmp_path, {}) as journal:
        assert write_report(journal, *results(tmp_path), said.append) == [tmp_path / ".visard" / "to_check.csv"]
    assert "visard[folder]" in said[0]
    assert not list((tmp_path / ".visard" / "drafts").iterdir())


def test_results_are_read_from_where_they_stand(finished):
    read, _ = results(finished)
    assert read("kept.png") == (finished / "kept.png").read_bytes()
    with pytest.raises(PhotoError):
        read("gone.png")


@pytest.mark.browser
def test_the_page_in_a_browser(finished, tmp_path):
    """At every width and in both colours, without scripts; accessible by the rules of axe-core."""
    address = (finished / ".visard" / "report.html").as_uri()
    Image.new("RGB", (16, 16)).save(tmp_path / "camera.mjpeg", "JPEG")
    with chromium(tmp_path / "camera.mjpeg") as browser:
        for colours in ("light", "dark"):
            page = browser.new_page(color_scheme=colours)
            page.goto(address)
            found = Axe().run(page)
            assert found.violations_count == 0, found.generate_report()
            for width in (320, 1280, 3840):
                page.set_viewport_size({"width": width, "height": 900})
                assert page.evaluate("document.documentElement.scrollWidth") <= width
            page.close()
        page = browser.new_page(java_script_enabled=False)
        page.goto(address)
        frames = page.locator(".picture svg").first
        assert frames.is_visible()
        page.get_by_label("frames around").uncheck()
        assert not frames.is_visible()
        page.get_by_role("link", name="Faces covered").click()
        assert page.url.endswith("#covered")
