"""The page of `visard web` in Firefox, from several photos to their ZIP file."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from PIL import Image

from visard_testing import HEIC
from visard_testing.firefox import firefox
from visard_testing.waiting import wait_until
from visard_testing.web_server import web_server

pytestmark = pytest.mark.browser

STAGES = "[...document.querySelectorAll('.card')].map((card) => card.dataset.stage)"
NAMES = "[...document.querySelectorAll('.card h2')].map((title) => title.textContent)"
FOCUSED = "document.activeElement.textContent"


def test_several_photos_to_one_file_in_firefox(tiny_server, astronaut, tmp_path):
    two = tmp_path / "two people.png"
    head = Image.open(astronaut).convert("RGB").crop((60, 0, 430, 330))
    Image.fromarray(np.hstack([np.asarray(head)] * 2)).save(two)
    Image.new("RGB", (400, 300), "slategray").save(tmp_path / "wall.webp")
    with web_server(tiny_server.grpc_url) as url, firefox(f"{url}/") as page:
        page.wait_for("document.getElementById('limit').textContent !== ''")
        page.choose_files("#files", two, HEIC, tmp_path / "wall.webp")
        page.wait_for("document.getElementById('waiting').textContent.startsWith('3 photos wait')")
        page.click("#consent")
        page.wait_for(f"{FOCUSED} === 'two people.png'")
        page.wait_for(f"String({STAGES}) === 'choosing,choosing,choosing'")
        assert page.evaluate("document.querySelector('.card').textContent.includes('2 faces found')")
        shown = "[...document.querySelectorAll('.layer.before img')].every((image) => image.naturalWidth > 0)"
        page.wait_for(shown)  # the HEIC, too, which Firefox cannot read itself

        page.click("#swap-all")
        page.wait_for(f"String({STAGES}) === 'compared,compared,choosing'")
        said = page.evaluate("document.getElementById('all-state').textContent")
        assert said == "2 ready to download, 1 without a face (look at it)"
        page.click("#download-all")
        together = page.downloads / "anonymized.zip"
        wait_until(lambda: together.exists() and zipfile.is_zipfile(together))
        with zipfile.ZipFile(together) as file:
            assert file.testzip() is None
            assert file.namelist() == ["two people.jpg", "astronaut.jpg"]
            sizes = [Image.open(file.open(name)).size for name in file.namelist()]
        assert sizes == [(740, 330), (512, 512)]

        page.click(".card:nth-child(2) [data-part=forget]")
        page.wait_for("!document.getElementById('undo').hidden")
        assert page.evaluate(NAMES) == ["two people.png", "wall.webp"]
        page.wait_for(f"{FOCUSED} === 'Undo'")
        page.click("#undo-button")
        page.wait_for(f"String({STAGES}) === 'compared,choosing,choosing'")
        assert page.evaluate(NAMES) == ["two people.png", "astronaut.heic", "wall.webp"]
        page.click("#forget-all")
        page.wait_for("document.querySelectorAll('.card').length === 0")
        assert page.evaluate("fetch('metrics').then((a) => a.text()).then((t) => t.includes('visard_kept_photos 0.0'))")
