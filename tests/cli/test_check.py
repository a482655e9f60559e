"""`visard check`: what each command lacks here, and the line that helps."""

from __future__ import annotations

import importlib.util
import os
from importlib import metadata

import pytest

from visard_cli import check
from visard_cli.check import lacks


@pytest.fixture
def without(monkeypatch, tmp_path):
    """Takes packages away; gives what `check` then says of each command and of the machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    version, find = metadata.version, importlib.util.find_spec

    def said(*packages, other=()):
        def found(name):
            if name in packages:
                raise metadata.PackageNotFoundError(name)
            return dict(other).get(name) or version(name)

        def module(name, *rest):
            return None if name == "pytriton" and "nvidia-pytriton" in packages else find(name, *rest)

        monkeypatch.setattr(metadata, "version", found)
        monkeypatch.setattr(importlib.util, "find_spec", module)
        return {what: (str(state), helps) for what, state, helps in (*check._commands(None), *check._machine())}

    return said


def test_where_nothing_is_missing_every_command_is_ready(without):
    said = without()
    assert said["swap, demo"] == ("ready (local, triton)", "")
    assert {said[command] for command in check._WITHOUT} == {("ready", "")}
    assert said["models of the detector"] == ("there", "")
    assert said["demo models"][0].startswith("are made at the first use, in ")
    assert {helps for what, (_, helps) in said.items() if what != "NVIDIA GPU"} == {""}


def test_without_any_engine_one_line_brings_the_one_that_runs_everywhere(without):
    said = without("onnx", "nvidia-pytriton", "jinja2")
    assert said["--engine local"] == ("lacks onnx", "pip install 'visard[local]'")
    state, helps = said["--engine triton, serve"]
    assert {"onnx", "nvidia-pytriton"} == set(state.removeprefix("lacks ").split(", "))
    assert helps == "pip install 'visard[serve]'"
    assert said["swap, demo"] == ("lacks onnx", "pip install 'visard[local]'")
    assert said["evaluate"] == ("lacks onnx, jinja2", "pip install 'visard[local,evaluate]'")
    assert said["export"] == ("lacks onnx", "pip install 'visard[export]'")
    assert said["demo models"] == ("lacks onnx", "pip install 'visard[local]'")
    assert said["folder --engine ray"] == ("ready", "")


def test_one_engine_is_enough(without):
    said = without("nvidia-pytriton", "fastapi")
    assert said["swap, demo"] == ("ready (local)", "")
    assert said["web"] == ("lacks fastapi", "pip install 'visard[web]'")


def test_a_version_that_does_not_do_is_named(without):
    said = without(other={"scipy": "1.2"})
    assert said["evaluate"] == ("lacks scipy>=1.11 (here: 1.2)", "pip install 'visard[evaluate]'")


def test_demo_models_need_nothing_once_they_are_made(without, monkeypatch, tmp_path):
    monkeypatch.setattr("visard_server.embedded.demo_models_folder", lambda: tmp_path)
    said = without("onnx")
    assert said["demo models"] == (str(tmp_path), "")
    assert said["--engine local"] == ("ready", "")


def test_a_gpu_is_named_and_what_uses_it(without, monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho NVIDIA H200\n", encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert without("onnxruntime-gpu")["NVIDIA GPU"] == ("NVIDIA H200", "pip install 'visard[serve-gpu]'")
    tool.write_text("#!/bin/sh\nexit 9\n", encoding="utf-8")  # as it does without a driver
    assert without()["NVIDIA GPU"][0].startswith("not seen")


def test_an_extra_includes_those_that_it_names(without):
    without("safetensors")
    assert lacks("serve") == lacks("local") == ["safetensors"]


def test_lines_that_help_can_be_copied_from_a_narrow_terminal(without, monkeypatch, capsys):
    without("stlpips-pytorch")
    monkeypatch.setattr("visard_cli.console.out._width", 60)
    check.check()
    assert "evaluate --naturalness: pip install 'visard[evaluate,naturalness]'\n" in capsys.readouterr().out
