"""The page on the evaluation names every key of its JSON, and its commands parse."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from visard_cli.receipt import app as receipt_app
from visard_evaluation.reduce import figures_of

DOCS = Path(__file__).resolve().parents[2] / "docs"


def lines(name):
    text = (DOCS / name).read_text(encoding="utf-8")
    return [
        line.split(" #")[0].strip()
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]


def test_every_key_is_explained():
    text = (DOCS / "evaluation.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", text))))
    everything = {
        *figures_of([], {}, []).to_dict(),
        "groups",
        "worst",
        "errors",
        "settings",
        "rank1_chance",
        "false_match",
    }
    assert everything <= explained


@pytest.mark.parametrize("line", lines("evaluation.md"))
def test_evaluate_lines_parse(line, monkeypatch, tmp_path):
    from visard_cli.app import app

    monkeypatch.chdir(tmp_path)
    command, *arguments = shlex.split(line)[1:]
    get_command(app).commands[command].make_context("visard", arguments)


@pytest.mark.parametrize("line", lines("receipts.md"))
def test_receipt_lines_parse(line):
    command, *arguments = shlex.split(line)[2:]
    get_command(receipt_app).commands[command].make_context("visard", arguments)
