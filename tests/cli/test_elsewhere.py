"""The command line on systems that lack what Unix has, with a console that lacks most letters."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys

import pytest
import typer.main
from PIL import Image

from visard_cli.app import app
from visard_folder import Journal, Record
from visard_folder.photo import Product
from visard_folder.tables import slashed
from visard_folder.walk import Found
from visard_folder.write import Writer
from visard_preprocess.files import name_problem
from visard_testing.elsewhere import MODULES

# Python's own choice of UTF-8 undone: text is opened as ASCII and printed as the console of a Windows in Europe has it.
OLD_CONSOLE = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "cp1252", "LC_ALL": "C"}


def elsewhere(*commands):
    line = " -- ".join(map(" ".join, commands)).split(" ")
    run = [sys.executable, "-m", "visard_testing.elsewhere", *line]
    environment = {**os.environ, **OLD_CONSOLE, "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(run, capture_output=True, timeout=600, env=environment, encoding="cp1252", errors="strict")


def names(command, before=()):
    yield before
    for name, inner in getattr(command, "commands", {}).items():
        yield from names(inner, (*before, name))


def test_every_command_explains_itself():
    commands = list(names(typer.main.get_command(app)))
    assert ("train", "personas") in commands
    done = elsewhere(*[(*command, "--help") for command in commands])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: ") == len(commands)
    assert "×" in done.stdout  # the console has it
    assert r"\u2026" in done.stdout or "…" in done.stdout


def test_photos_and_folders_are_anonymised(astronaut, tmp_path):
    photo = tmp_path / "in" / "ünter" / "写真.jpg"
    photo.parent.mkdir(parents=True)
    shutil.copy(astronaut, photo)
    (tmp_path / "boxes.csv").write_text("file,left,top,right,bottom\nünter/写真.jpg,10,10,60,60\n", encoding="utf-8")
    here = ("--engine", "local")
    done = elsewhere(
        ("swap", str(photo), "-o", str(tmp_path / "out"), *here),
        ("folder", str(tmp_path / "in"), str(tmp_path / "all"), "--boxes", str(tmp_path / "boxes.csv"), *here),
        ("receipt", "keygen", str(tmp_path / "keys" / "visard")),
        ("check",),
    )
    assert done.returncode == 0, done.stderr
    assert "1 swapped, 0 covered" in done.stderr
    for result in (tmp_path / "out" / photo.name, tmp_path / "all" / "ünter" / photo.name):
        with Image.open(result) as image:
            assert image.size == (512, 512)
    with (tmp_path / "all" / ".visard" / "manifest.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["path"] == "ünter/写真.jpg"
    assert row["faces"].count("box") == 2


def test_the_modules_are_really_missing():
    tries = "\n".join(f"try: import {module}\nexcept ImportError: print({module!r})" for module in MODULES)
    code = f"import sys\nfrom visard_testing.elsewhere import take_away\ntake_away()\n{tries}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == list(MODULES), done.stderr


@pytest.mark.parametrize(
    "name",
    [
        *("C:/Windows/win.ini", "..\\..\\up.jpg", "a\\b.jpg", "photo.jpg:stream", "a/b?.jpg", "what*.jpg", "tab\t.jpg"),
        *("a./b.jpg", "b.jpg ", "NUL", "nul.jpg", "x/COM1.png", "lpt9", "Con .jpg"),
    ],
)
def test_names_that_mean_something_else_on_windows_are_not_touched_there(tmp_path, monkeypatch, name):
    assert name_problem(name, "posix") is None
    monkeypatch.setattr("visard_folder.write.name_problem", lambda path: name_problem(path, "nt"))
    found = Found(path=name, file="")
    with Journal(tmp_path / "out", {}) as journal:
        write = Writer(journal).store
        target = journal.target / name
        assert target.is_relative_to(tmp_path)
        done = write(Product(record=Record(path=name, outcome="anonymised"), encoded=b"pixels"), found)
        assert (done.outcome, done.size_bytes, target.exists()) == ("failed", None, False)
        assert "on Windows" in done.message
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"somebody's")
        assert write(Product(record=Record(path=name, outcome="withheld")), found).outcome == "withheld"
        assert target.exists()


@pytest.mark.parametrize(
    "name", ["a/b.jpg", ".hidden/ü.jpg", "写真.jpg", "console.jpg", "x/com.jpg", "nulls", "a b.c.jpg"]
)
def test_other_names_are(name):
    assert name_problem(name, "nt") is None


def test_tables_from_windows_name_the_same_files():
    assert slashed("holiday\\beach.jpg", "\\") == "holiday/beach.jpg"
    assert slashed("holiday/beach.jpg", "\\") == "holiday/beach.jpg"
    assert slashed("holiday\\beach.jpg", "/") == "holiday\\beach.jpg"  # one name, where a backslash is a letter
