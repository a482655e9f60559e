"""What goes wrong around the photos: names, places, terminals. Said before the work, in words, with the right code."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import psutil
import pytest
from PIL import Image
from typer.testing import CliRunner

from visard_cli.app import app
from visard_cli.console import err, progress_line
from visard_cli.exit_codes import EXIT_CODES
from visard_cli.outputs import choose_targets
from visard_errors import OutputError, PhotoError, ServerError
from visard_preprocess.photo import write_photo
from visard_testing import HEIC
from visard_testing.command_line import visard
from visard_testing.tiny_models import tiny_repository
from visard_testing.waiting import wait_until

NO_SERVER = ("--server", "127.0.0.1:9")  # whoever gets as far as asking it ends with 4


def copy_of(photo, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(photo, path)
    return path


def as_a_user(*arguments, largest_file=None):
    """Run `visard` without root's right to read and write what it likes, where root runs the tests.

    With `largest_file` the disk is full after so many bytes of a file.
    """

    def give_up_rights():
        prctl, drop_from_bounding_set = ctypes.CDLL(None).prctl, 24
        if os.geteuid() == 0:
            for override in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
                assert prctl(drop_from_bounding_set, override, 0, 0, 0) == 0
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    return subprocess.run(
        [sys.executable, "-m", "visard_cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=give_up_rights,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
    )


# --- one result never takes the place of another, or of a photo -------------------------------------------------------


@pytest.mark.parametrize(
    ("photos", "options"),
    [
        (["x/a.jpg", "y/a.jpg"], []),
        (["a.jpg", "a.jpg"], []),
        (["a_before_after.jpg", "a.jpg"], ["--side-by-side"]),
        (["x/a.jpg", "y/a_before_after.jpg"], ["--side-by-side"]),
        (["x/a.jpg", "y/a.png"], ["--crops"]),
        (["x/a.jpg", "y/a.jfif"], []),  # both are written as a.jpg
        (["x/a", "y/a.jpg"], []),
    ],
)
def test_results_that_would_overwrite_each_other_are_refused_before_the_work(astronaut, tmp_path, photos, options):
    paths = [copy_of(astronaut, tmp_path / photo) for photo in photos]
    run = visard("swap", *paths, "-o", tmp_path / "out", *options, *NO_SERVER)
    assert run.returncode == 2, run.stderr
    assert "overwrite" in run.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("photos", "output", "options"),
    [
        (["x/a.jpg", "y/a_before_after.jpg"], "y/new.jpg", ["--side-by-side"]),
        (["y/a.jpg", "y/b_before_after.jpg", "x/b.jpg"], "y", ["--side-by-side"]),
        (["a.jfif", "o/a.jpg"], "o", []),
        (["a.jpg", "o/a_face1.png"], "o", ["--crops"]),
    ],
)
def test_no_result_takes_the_place_of_a_photo(astronaut, tmp_path, photos, output, options):
    paths = [copy_of(astronaut, tmp_path / photo) for photo in photos]
    run = visard("swap", *paths, "-o", tmp_path / output, *options, *NO_SERVER)
    assert run.returncode == 2, run.stderr
    assert [path.read_bytes() == astronaut.read_bytes() for path in paths] == [True] * len(paths)


def test_names_that_only_look_alike_stay(tmp_path):
    photos = [tmp_path / name for name in ("a.jpg", "a.png", "b_before_after.jpg", "IMG.2024", "IMG.2025", "c.JPEG")]
    targets = choose_targets(photos, tmp_path / "out", crops=False, side_by_side=True)
    names = ["a.jpg", "a.png", "b_before_after.jpg", "IMG.2024.jpg", "IMG.2025.jpg", "c.JPEG"]
    assert [target.name for target in targets] == names


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (["x/A.jpg", "y/a.jpg"], {}),
        (["x/e\u0301.jpg", "y/É.JPG"], {}),  # an accent of its own, and a letter with it
        (["x/a_BEFORE_after.jpg", "y/A.jpg"], {"side_by_side": True}),
    ],
)
def test_names_that_a_folder_takes_for_one_are_refused_there_alone(tmp_path, monkeypatch, names, options):
    photos = [tmp_path / name for name in names]
    choose = partial(
        choose_targets, photos, tmp_path / "new" / "out", **{"crops": False, "side_by_side": False} | options
    )
    assert [target.name for target in choose()] == [photo.name for photo in photos]  # here they are two
    assert list(tmp_path.iterdir()) == []
    asked = []
    monkeypatch.setattr("visard_cli.outputs.folds_case", lambda folder: asked.append(folder) or True)
    with pytest.raises(ValueError, match="differ by case only"):
        choose()
    assert asked == [tmp_path]  # the folder in which the new ones will be made


def test_two_reports_under_one_name_are_refused(tmp_path):
    path = tmp_path / "report"
    run = visard("evaluate", tmp_path, "--report", path, "--markdown", tmp_path / "." / "report", *NO_SERVER)
    assert run.returncode == 2
    assert "overwrite" in run.stderr


# --- names of files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("photo.jfif", "photo.jpg"),
        ("photo.JPE", "photo.jpg"),
        ("photo", "photo.jpg"),
        ("IMG.2024", "IMG.2024.jpg"),
        ("photo.heic", "photo.jpg"),  # a JPEG under that name, as some phones send it
        ("phone.heic", "phone.jpg"),
    ],
)
def test_a_photo_of_any_name_is_written_and_it_is_said_before(tiny_server, astronaut, tmp_path, name, written):
    photo = copy_of(HEIC if name.startswith("phone") else astronaut, tmp_path / name)
    run = visard("swap", photo, "-o", tmp_path / "out", "--server", tiny_server.grpc_url)
    assert run.returncode == 0, run.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == [written]
    with Image.open(tmp_path / "out" / written) as image:
        assert image.format == "JPEG"
    assert f"{name} is written as {written}" in run.stderr
    assert run.stderr.index("is written as") < run.stderr.index("Image saved")


@pytest.mark.parametrize("output", ["out.tif", "x.gif", "x.HEIC", "x.jfif", "deep/x.bmp"])
def test_an_output_in_a_format_that_is_not_written_is_refused_with_the_list(astronaut, tmp_path, output):
    run = visard("swap", astronaut, "-o", tmp_path / output, *NO_SERVER)
    assert run.returncode == 2, run.stderr
    assert ".jpeg, .jpg, .png, .webp" in run.stderr
    assert list(tmp_path.iterdir()) == []


NAMES = ["IMG[edited].jpg", "[/].jpg", "[bold]x[/bold].jpg", "a [red]b.jpg", ":dog:.jpg", "[/red].jpg"]


def test_names_with_brackets_are_shown_as_they_are(tiny_server, astronaut, tmp_path):
    photos = [copy_of(astronaut, tmp_path / "in[x]" / name.replace("/", "∕")) for name in NAMES]
    gone = tmp_path / "[gone].jpg"
    out = tmp_path / "[out]"
    run = visard("swap", *photos, gone, "-o", out, "--server", tiny_server.grpc_url)
    assert run.returncode == EXIT_CODES[PhotoError], run.stderr
    for photo in photos:
        assert photo.name in run.stdout
        assert f"Image saved: {out / photo.name}" in run.stderr
    assert str(gone) in run.stdout


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["serve", "{0}/[red]m[/red]"], "{0}/[red]m[/red]"),
        (["receipt", "keygen", "{0}/[k]"], "{0}/[k].pub"),
        (["evaluate", "{0}/[none]", *NO_SERVER], "{0}/[none]"),
        (["folder", "{0}", "{0}/[o]", "--receipt", "{0}/[/key]"], "{0}/[/key]"),
        (["check", "--models", "{0}/[/m]"], "{0}/[/m]"),
    ],
)
def test_no_command_loses_brackets(tmp_path, command, words):
    run = visard(*(part.format(tmp_path) for part in command))
    assert "Traceback" not in run.stderr
    assert words.format(tmp_path) in (run.stdout + run.stderr).replace("\n", "")


HOSTILE = "\x1b]0;title\x07\x1b[2Jcat\u202egpj.jpg"


def test_names_do_not_reach_the_terminal_as_commands(tiny_server, astronaut, tmp_path):
    escaped = HOSTILE.encode("unicode_escape").decode()
    photos = [copy_of(astronaut, tmp_path / name) for name in (HOSTILE, "a\nImage saved: b.jpg")]
    gone = tmp_path / f"gone{HOSTILE}"
    run = visard("swap", *photos, gone, "-o", tmp_path / "o", "--server", tiny_server.grpc_url)
    assert run.returncode == EXIT_CODES[PhotoError], run.stderr
    assert escaped in run.stdout
    assert f"gone{escaped}: UnreadablePhoto" in run.stdout
    assert f"Image saved: {tmp_path}/o/{escaped}" in run.stderr
    assert "a\\nImage saved: b.jpg" in run.stdout
    for command in (
        ["serve", tmp_path / HOSTILE],  # an error of ours
        ["swap", gone, "-o", f"{gone}.gif", *NO_SERVER],  # wrong usage that we refuse
        ["swap", gone, "-o", "o", f"--{HOSTILE}"],  # and that typer does
        ["swap", gone, "-o", "o", "--engine", HOSTILE],
    ):
        other = visard(*command, env={"COLUMNS": "500"})
        assert other.returncode in (2, 6)
        assert escaped in other.stderr
        run.stderr += other.stderr
    assert not {"\x1b", "\x07", "\u202e"} & {*run.stdout, *run.stderr}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["swap", "a.jpg", "-o", "o", "--engine", "x"], "'x' is not one of 'auto', 'triton', 'local'"),
        (["folder", "a", "b", "--unswapped", "x"], "'x' is not one of 'cover', 'withhold', 'show'"),
    ],
)
def test_a_wrong_choice_is_refused_in_our_words_alone(wrong, words):
    run = CliRunner().invoke(app, wrong, env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert run.exit_code == 2
    assert words in run.output
    assert "Value error" not in run.output


def test_a_line_of_progress_with_brackets_is_shown(capsys):
    with err.status("Starting") as status:
        progress_line(status)("exporting [/] from [bold]x[/bold].pth")
        assert status.status.plain == "exporting [/] from [bold]x[/bold].pth"


# --- terminals --------------------------------------------------------------------------------------------------------

TERMINALS = [
    {"PYTHONIOENCODING": "iso-8859-1"},
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


@pytest.mark.parametrize("terminal", TERMINALS, ids=["latin", "ascii", "C"])
def test_a_terminal_that_cannot_show_a_letter_gets_the_right_code(tiny_server, astronaut, tmp_path, terminal):
    photo = copy_of(astronaut, tmp_path / "Žofia – 猫.jpg")
    run = visard(
        "swap", photo, tmp_path / "gone ž.jpg", "-o", tmp_path / "o", "--server", tiny_server.grpc_url, env=terminal
    )

    assert "Traceback" not in run.stderr
    assert run.returncode == EXIT_CODES[PhotoError], run.stderr
    assert "ofia" in run.stdout
    assert [path.name for path in (tmp_path / "o").iterdir()] == [photo.name]
    for command in (["--help"], ["swap", "--help"], ["check"]):
        run = visard(*command, env=terminal)
        assert run.returncode == 0, run.stderr
    run = visard("serve", tmp_path / "ž", env=terminal)
    assert run.returncode == 6, run.stderr


def test_a_name_that_is_no_text_is_shown_too(tiny_server, astronaut, tmp_path):
    photo = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    shutil.copy(os.fsencode(astronaut), photo)
    run = visard("swap", os.fsdecode(photo), "-o", tmp_path / "o", "--server", tiny_server.grpc_url)
    assert run.returncode == 0, run.stderr
    assert "caf\\udce9.jpg" in run.stdout


# --- errors -----------------------------------------------------------------------------------------------------------


def test_errors_stand_under_the_table_in_full_width(tiny_server, astronaut, tmp_path):
    gone = tmp_path / "gone.jpg"
    run = visard("swap", astronaut, gone, "-o", tmp_path / "o", "--server", tiny_server.grpc_url, env={"COLUMNS": "80"})
    reason = f"cannot read '{gone}' (No such file or directory): check the path and its permissions"
    *table, last = run.stdout.splitlines()
    assert last == f"gone.jpg: UnreadablePhoto: {reason}"
    assert any("withheld" in line for line in table)
    assert not any("Unreadable" in line for line in table)


def test_one_unreadable_file_stops_no_other(tiny_server, astronaut, tmp_path):
    locked = copy_of(astronaut, tmp_path / "locked.jpg")
    locked.chmod(0)
    hidden = copy_of(astronaut, tmp_path / "hidden" / "b.jpg")
    hidden.parent.chmod(0)
    photos = [locked, hidden, tmp_path / ("x" * 300 + ".jpg"), tmp_path, astronaut]
    run = as_a_user("swap", *photos, "-o", tmp_path / "o", "--server", tiny_server.grpc_url, "--json")
    hidden.parent.chmod(0o755)
    assert run.returncode == EXIT_CODES[PhotoError], run.stderr
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert [line.get("error") for line in lines] == ["UnreadablePhoto"] * 4 + [None]
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["astronaut.jpg"]
    assert "4 of 5 photos" in run.stderr


def test_a_photo_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "taken.jpg").mkdir()
    for path in (tmp_path / "taken.jpg", tmp_path / "none" / "a.jpg", tmp_path / ("x" * 300 + ".jpg")):
        with pytest.raises(OutputError, match="cannot write"):
            write_photo(np.zeros((8, 8, 3), np.uint8), path, source_type=None)


def test_an_output_that_cannot_be_written_exits_8(astronaut, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "locked").mkdir(mode=0o555)
    for output in ("file/out", "locked/new/out", "locked", "locked/out.jpg"):
        run = as_a_user("swap", astronaut, "-o", tmp_path / output, *NO_SERVER)
        assert run.returncode == EXIT_CODES[OutputError], (output, run.stderr)
        assert "OutputError" in run.stderr
        assert str(tmp_path / output.split("/")[0]) in run.stderr


def test_a_home_that_cannot_be_entered_is_one_without_settings(tmp_path, monkeypatch):
    (tmp_path / "visard").mkdir()
    (tmp_path / "visard" / "visard.toml").write_text("[check]")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert "Options from" in as_a_user("check").stderr
    tmp_path.chmod(0)
    try:
        run = as_a_user("check")
    finally:
        tmp_path.chmod(0o700)
    assert (run.returncode, run.stderr) == (0, "")


def test_a_run_stops_where_its_own_server_was_killed_twice(astronaut, tmp_path):
    repository = tiny_repository(tmp_path / "models", slow_s=1.0)
    photos = [copy_of(astronaut, tmp_path / f"{number}.jpg") for number in range(40)]
    command = ["swap", *photos, "-o", tmp_path / "out", "--models", repository, "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "visard_cli", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    supervised = psutil.Process(process.pid)

    def triton():
        found = []
        for each in supervised.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
                if each.name() == "tritonserver":
                    found.append(each)
        return found

    process.stdout.readline()  # the first photo is done
    (first,) = wait_until(triton)
    first.kill()
    again = wait_until(lambda: [each for each in triton() if each.pid != first.pid])
    process.stdout.readline()  # the second was answered, by the new one
    again[0].kill()
    out, errors = process.communicate(timeout=120)
    outcomes = [json.loads(line) for line in out.splitlines()]
    assert process.returncode == EXIT_CODES[ServerError], errors
    assert "photos were not tried" in errors
    assert len(outcomes) < 35
    assert outcomes[-1]["error"] == "ServerUnavailable"


def test_a_full_disk_exits_8(tiny_server, astronaut, tmp_path):
    (tmp_path / "out").mkdir()
    photos = [astronaut, copy_of(astronaut, tmp_path / "again.png")]
    run = as_a_user("swap", *photos, "-o", tmp_path / "out", "--server", tiny_server.grpc_url, largest_file=1000)
    assert run.returncode == EXIT_CODES[OutputError], run.stderr
    assert f"astronaut.jpg: OutputError: cannot write '{tmp_path / 'out' / 'astronaut.jpg'}'" in run.stdout
    assert list((tmp_path / "out").iterdir()) == []
