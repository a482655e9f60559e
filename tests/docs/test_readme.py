"""The guides' Python is executed as it stands there, their shell lines against the real command line's options."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

import visard
from visard_cli.app import app
from visard_server import embedded

ROOT = Path(__file__).resolve().parents[2]


def blocks(file, language):
    text = (ROOT / file).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("guide", ["README.md", "docs/python.md"])
def test_first_python_runs(guide, tiny_server, astronaut, tmp_path, monkeypatch, capsys):
    (tmp_path / "photo.jpg").write_bytes(astronaut.read_bytes())
    monkeypatch.chdir(tmp_path)
    tour = blocks(guide, "python")[0]
    assert "127.0.0.1:8001" in tour
    exec(compile(tour.replace("127.0.0.1:8001", tiny_server.grpc_url), guide, "exec"), {})
    if guide == "docs/python.md":
        printed = capsys.readouterr().out
        assert "0 anonymised" in printed
        assert "1 cannot read" in printed
    assert (tmp_path / "anonymised.jpg").is_file()


def test_python_for_many_photos_runs(tiny_server, astronaut, tmp_path, monkeypatch, capsys):
    (tmp_path / "photo.jpg").write_bytes(astronaut.read_bytes())
    monkeypatch.chdir(tmp_path)
    (block,) = (block for block in blocks("docs/python.md", "python") if "visard.Progress" in block)
    exec(compile(block.replace("127.0.0.1:8001", tiny_server.grpc_url), "docs/python.md", "exec"), {"visard": visard})
    printed = capsys.readouterr().out
    assert "2 of 2, 1 failed" in printed
    assert "missing.jpg was not anonymised" in printed
    assert (tmp_path / "anonymised_photo.jpg").is_file()


def test_python_without_a_server_runs(tiny_server, astronaut, tmp_path, monkeypatch):
    (tmp_path / "photo.jpg").write_bytes(astronaut.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embedded, "demo_models", lambda: tiny_server.repository)
    (block,) = (block for block in blocks("docs/python.md", "python") if "visard.Local" in block)
    exec(compile(block, "docs/python.md", "exec"), {})
    assert (tmp_path / "anonymised.jpg").is_file()


COMMANDS = [
    line.split(" #")[0].strip()
    for file in ("command_line", "evaluation", "folders", "installing", "receipts", "training", "video", "web")
    for block in blocks(f"docs/{file}.md", "sh")
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("visard ")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_shell_lines_parse(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "visard.toml").write_text(blocks("docs/command_line.md", "toml")[0], encoding="utf-8")
    node, arguments = get_command(app), shlex.split(command)[1:]
    context = node.make_context("visard", [], resilient_parsing=True)
    while hasattr(node, "commands"):
        name, *arguments = arguments
        node = node.commands[name]
        group = hasattr(node, "commands")
        # raises on an unknown option or value
        context = node.make_context(name, [] if group else arguments, parent=context, resilient_parsing=group)


def test_every_command_is_toured():
    assert {shlex.split(command)[1] for command in COMMANDS} >= set(get_command(app).commands) - {"demo"}
    toured = {shlex.split(command)[2] for command in COMMANDS if command.startswith("visard train")}
    assert toured == set(get_command(app).commands["train"].commands)
