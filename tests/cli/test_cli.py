"""The command line as a user runs it: a process of its own, its exit code, its words and its files."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from visard import Local
from visard_cli import console
from visard_cli.app import app
from visard_cli.exit_codes import EXIT_CODES
from visard_errors import PhotoError, VisardError
from visard_server import wheel
from visard_testing.command_line import visard
from visard_testing.tiny_models import held
from visard_testing.waiting import wait_until


def size_of(path):
    with Image.open(path) as image:
        return image.size


def test_swap_one_photo_into_a_file(tiny_server, astronaut, tmp_path):
    run = visard("swap", astronaut, "-o", tmp_path / "out.webp", "--server", tiny_server.grpc_url, "--side-by-side")
    assert run.returncode == 0, run.stderr
    assert "Image saved" in run.stderr
    assert "astronaut.jpg" in run.stdout
    assert "swapped" in run.stdout
    assert "Faces: 1 swapped, 0 covered" in run.stderr
    after = np.asarray(Image.open(tmp_path / "out.webp").convert("RGB"))
    both = np.asarray(Image.open(tmp_path / "out_before_after.webp").convert("RGB"))
    before = np.asarray(Image.open(astronaut).convert("RGB"))
    assert both.shape == (512, 512 * 2 + 8, 3)
    assert np.abs(both[:, :512].astype(int) - before).mean() < 3  # WebP is lossy
    assert np.abs(both[:, -512:].astype(int) - after).mean() < 3


def test_swap_two_people(tiny_server, shared_photos, tmp_path):
    photo = shared_photos["53_face_recognition_two_people.jpg"]["path"]
    run = visard("swap", photo, "-o", tmp_path / "out", "--server", tiny_server.grpc_url)
    assert run.returncode == 0, run.stderr
    assert "1/2" in run.stdout
    assert "2/2" in run.stdout
    assert (tmp_path / "out" / Path(photo).name).is_file()


def test_swap_many_reports_each_and_loses_none(tiny_server, astronaut, tmp_path):
    (tmp_path / "text.jpg").write_text("not a photo")
    Image.new("RGB", (200, 200)).save(tmp_path / "black.png")
    photos = [tmp_path / "text.jpg", astronaut, tmp_path / "black.png", tmp_path / "gone.jpg"]
    run = visard("swap", *photos, "-o", tmp_path / "out", "--server", tiny_server.grpc_url, "--json")
    assert run.returncode == EXIT_CODES[PhotoError]
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert [line["photo"] for line in lines] == [str(photo) for photo in photos]
    assert [line.get("error") for line in lines] == ["UnsupportedFormat", None, "NoFace", "UnreadablePhoto"]
    assert lines[1]["faces"][0]["flipped"] is True
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["astronaut.jpg"]  # nothing is passed through


def test_swap_crops(tiny_server, astronaut, tmp_path):
    run = visard("swap", astronaut, "-o", tmp_path / "out", "--server", tiny_server.grpc_url, "--crops")
    assert run.returncode == 0, run.stderr
    assert size_of(tmp_path / "out" / "astronaut_face1.png") == (512, 512)


def test_swap_never_overwrites_its_source(tiny_server, astronaut, tmp_path):
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(astronaut.read_bytes())
    for output in (tmp_path, photo):
        run = visard("swap", photo, "-o", output, "--server", tiny_server.grpc_url)
        assert run.returncode == 2
        assert "overwrite" in run.stderr
    assert photo.read_bytes() == astronaut.read_bytes()


def test_swap_takes_boxes_for_one_photo(tiny_server, astronaut, tmp_path):
    swap = (
        "swap",
        astronaut,
        "-o",
        tmp_path / "out.png",
        "--server",
        tiny_server.grpc_url,
        "--detector-threshold",
        0.95,
    )
    run = visard(*swap, "--box", "150,20,300,190", "--box", "20,350,120,460", "--json")
    assert run.returncode == 0, run.stderr
    line = json.loads(run.stdout)
    assert [face["box"] for face in line["faces"] + line["others"]] == [[150, 20, 300, 190], [20, 350, 120, 460]]
    assert [face["reason"] for face in line["others"]] == ["unclear"]
    run = visard(*swap, "--box", "150,20,300,1900")
    assert run.returncode == 3
    assert "BoxOutsidePhoto" in run.stdout
    for wrong, words in (((astronaut, "--box", "1,2,30,40"), "one photo"), (("--box", "1,2,30"), "left, top, right")):
        run = visard(*swap, *wrong)
        assert run.returncode == 2
        assert words in " ".join(run.stderr.replace("│", " ").split())


def test_swap_refuses_two_photos_of_one_name(tiny_server, astronaut, tmp_path):
    (tmp_path / "a").mkdir()
    photo = tmp_path / "a" / astronaut.name
    photo.write_bytes(astronaut.read_bytes())
    run = visard("swap", photo, astronaut, "-o", tmp_path / "out", "--server", tiny_server.grpc_url)
    assert run.returncode == 2
    assert "same name" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--server", "http://host:1"], "host:port"),
        (["--server", "host:1", "--token", "t"], "unencrypted"),
        (["--direction", "up"], "to_male"),
        (["--min-confidence", "0.2"], "0.5"),
        (["--surprise"], "No such option"),
    ],
)
def test_wrong_usage(astronaut, tmp_path, arguments, words):
    run = visard("swap", astronaut, "-o", tmp_path, *arguments)
    assert run.returncode == 2
    assert words in run.stderr


def test_no_server_is_one_readable_line(astronaut, tmp_path):
    run = visard("swap", astronaut, "-o", tmp_path / "out.png", "--server", "127.0.0.1:9")
    assert run.returncode == 4
    assert "ServerUnavailable" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.slow
def test_untrained_models_are_announced_loudly(exported, astronaut, tmp_path):
    run = visard("swap", astronaut, "-o", tmp_path / "out.png", "--models", exported, "--identity")
    assert run.returncode == 0, run.stderr
    assert "UNTRAINED" in run.stderr
    assert "generator_to_male" in run.stderr
    assert size_of(tmp_path / "out.png") == (512, 512)


def test_check_shows_provenance_of_a_repository(exported):
    run = visard("check", "--models", exported)
    assert run.returncode == 0, run.stderr
    for word in ("dlib", "gender_classifier", "persona.safetensors", "persona"):
        assert word in run.stdout


def test_check_asks_a_server(tiny_server):
    run = visard("check", "--server", tiny_server.grpc_url)
    assert run.returncode == 0, run.stderr
    assert "6 of 6 models ready" in run.stdout


def test_export_refuses_a_wrong_checkpoint(astronaut, tmp_path):
    run = visard(
        "export", tmp_path / "m", *("--classifier", astronaut, "--to-male", astronaut, "--to-female", astronaut)
    )
    assert run.returncode == 5
    assert "CheckpointError" in run.stderr
    assert not (tmp_path / "m").exists()


def test_serve_refuses_a_folder_that_is_no_repository(tmp_path):
    run = visard("serve", tmp_path)
    assert run.returncode == 6
    assert "visard export" in run.stderr


def test_models_run_in_this_process_where_there_is_no_server(exported, astronaut, tmp_path, monkeypatch):
    here, there = (tmp_path / f"{engine}.png" for engine in ("local", "triton"))
    for path in (here, there):
        options = ("--engine", path.stem, "--persona-key", "one", "--unswapped", "show", "--no-identity")
        run = visard("swap", astronaut, "-o", path, "--models", exported, *options)
        assert run.returncode == 0, run.stderr
    assert here.read_bytes() == there.read_bytes()
    assert "exclude each other" in visard("swap", astronaut, "-o", here, "--server", "a:1", "--engine", "local").stderr

    monkeypatch.setattr(wheel.sys, "platform", "darwin")
    with ExitStack() as stack:
        assert console.engine_for(stack, None, exported, "auto") == Local(models=exported)


def test_it_runs_without_the_modules_that_only_unix_has(exported, astronaut, tmp_path):
    code = (
        "import runpy, sys\n"
        "sys.modules.update(dict.fromkeys(('fcntl', 'grp', 'pwd', 'resource', 'termios')))\n"
        "runpy.run_module('visard_cli', run_name='__main__')"
    )

    def run(*arguments):
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    run("folder", "--help")
    run("swap", astronaut, "-o", tmp_path / "out.png", "--models", exported, "--engine", "local")
    assert (tmp_path / "out.png").is_file()


@pytest.mark.slow
def test_serve_until_interrupted(exported):
    command = [sys.executable, "-m", "visard_cli", "serve", str(exported), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Ctrl-C" in line:
            break
    text = "".join(lines)
    assert "gRPC" in text
    assert "anonymizer" in text
    address = next(line.split()[1] for line in lines if line.startswith("gRPC"))
    assert visard("check", "--server", address).returncode == 0
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0, process.stderr.read()
    process.stdout.close()
    process.stderr.close()
    assert visard("check", "--server", address).returncode == 4


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupting_it_while_it_is_loaded_is_quiet(sign, code):
    halting = (
        "import runpy, sys, time\n"
        "class Halt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer':\n"
        "            print('loading', flush=True)\n"
        "            time.sleep(600)\n"
        "sys.meta_path.insert(0, Halt())\n"
        "runpy.run_module('visard_cli', run_name='__main__')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", halting], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "loading\n"
    process.send_signal(sign)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (code, "")


def test_interrupting_a_run_ends_everything(slow_server, astronaut, tmp_path):
    command = [sys.executable, "-m", "visard_cli", "swap", str(astronaut), "-o", str(tmp_path / "o.png")]
    with held(slow_server.repository) as begun:
        process = subprocess.Popen(
            [*command, "--server", slow_server.grpc_url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        wait_until(begun)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not (tmp_path / "o.png").exists()


def test_demo(exported, tmp_path):
    run = visard("demo", "-o", tmp_path / "demo", "--models", exported)
    assert run.returncode == 0, run.stderr
    assert size_of(tmp_path / "demo" / "before_after.png") == (1032, 512)
    result = json.loads((tmp_path / "demo" / "result.json").read_text())
    (face,) = result["faces"] + result["others"]  # what random weights draw is covered
    assert face["outcome"] in ("swapped", "covered")


def test_exit_codes_cover_every_error():
    def leaves(kind):
        return [leaf for sub in kind.__subclasses__() for leaf in leaves(sub)] or [kind]

    assert all(any(issubclass(leaf, kind) for kind in EXIT_CODES) for leaf in leaves(VisardError))


@pytest.mark.parametrize("command", [[], ["swap"], ["serve"], ["evaluate"], ["export"], ["check"], ["demo"], ["train"]])
def test_help_teaches(command):
    run = visard(*command, "--help")
    assert run.returncode == 0
    assert "Usage" in run.stdout


def commands(group, *path):
    for name, command in group.commands.items():
        yield from commands(command, *path, name) if hasattr(command, "commands") else [((*path, name), command)]


def test_help_of_every_command_names_its_exit_codes():
    found = dict(commands(typer.main.get_command(app)))
    assert ("train", "swapper") in found
    for path, command in found.items():
        assert "Exit codes: 0" in (command.epilog or ""), path


def loaded_by(*arguments):
    """The heavy packages that a command has loaded when it ends."""
    heavy = {"torch", "ray", "matplotlib", "scipy", "onnx", "onnxruntime", "fastapi"}
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('loaded', *sorted({heavy} & set(sys.modules))))\n"
        "from visard_cli.app import main\n"
        "main()"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()[-1].split()[1:]


def test_commands_load_only_what_they_need(tiny_server, exported, astronaut, tmp_path):
    assert loaded_by("--help") == []
    assert loaded_by("train", "swapper", "--help") == []  # so it can be read where the extra is missing
    assert loaded_by("swap", astronaut, "-o", tmp_path / "out.png", "--server", tiny_server.grpc_url) == ["onnxruntime"]
    assert loaded_by("check", "--models", exported) == []
