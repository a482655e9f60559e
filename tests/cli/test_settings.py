"""Options by environment variables and by a file, what goes before what, and what a shell completes."""

import os
import subprocess
import sys

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from visard_cli import settings
from visard_cli.app import app
from visard_cli.console import SECRETS

SWAP = ("swap", "a.jpg", "-o", "out")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working directory and settings of a user who has none."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(settings, "own_file", lambda: tmp_path / "own" / "visard.toml")
    for name in [name for name in os.environ if name.startswith("VISARD_")]:
        monkeypatch.delenv(name)
    return tmp_path


def given(*arguments):
    """What a command is called with, instead of running it."""
    root = get_command(app)
    seen = {}
    for _, command in leaves(root):
        command.callback = lambda **values: seen.update(values)
    root(list(map(str, arguments)), prog_name="visard", standalone_mode=False)
    return seen


def leaves(group, *above):
    for name, command in group.commands.items():
        yield from leaves(command, *above, name) if hasattr(command, "commands") else [((*above, name), command)]


def write(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_command_line_then_environment_then_file_then_default(elsewhere, monkeypatch, capsys):
    file = write(elsewhere / "a.toml", '[swap]\ndeadline = 60\nidentity = false\nbox = ["1,2,3,4"]\njson = true\n')
    assert given(*SWAP)["deadline"] == 30.0
    for where in (("--config", file, *SWAP), (*SWAP, "--config", file)):
        values = given(*where)
        assert (values["deadline"], values["identity"], *values["box"]) == (60.0, False, "1,2,3,4")
        assert values["as_json"] is True
        assert capsys.readouterr().err.split() == f"Options from {file}: --deadline, --identity, --box, --json".split()
    monkeypatch.setenv("VISARD_CONFIG", str(file))
    monkeypatch.setenv("VISARD_SWAP_DEADLINE", "70")
    monkeypatch.setenv("VISARD_SWAP_BOX", "5,6,7,8 9,10,11,12")
    monkeypatch.setenv("VISARD_SWAP_JSON", "0")
    values = given(*SWAP)
    assert (values["deadline"], values["identity"], values["as_json"]) == (70.0, False, False)
    assert list(values["box"]) == ["5,6,7,8", "9,10,11,12"]
    values = given(*SWAP, "--deadline", "80", "--identity")
    assert (values["deadline"], values["identity"]) == (80.0, True)
    assert given(*SWAP, "--config", os.devnull)["identity"] is True  # the file behind the command goes before others


def test_a_required_option_can_stand_in_the_file_and_a_command_in_a_group(elsewhere):
    file = write(elsewhere / "a.toml", '[swap]\noutput = "there"\n[train.classifier]\nseed = 7\noutput = "runs"\n')
    assert str(given("swap", "a.jpg", "--config", file)["output"]) == "there"
    values = given("train", "classifier", "faces", "--config", file)
    assert (values["seed"], str(values["output"])) == (7, "runs")


def test_every_option_has_a_variable_of_its_own(monkeypatch):
    own = {}
    for path, command in leaves(get_command(app)):
        for name, option in settings._options(command).items():
            own[path, name] = "_".join(("VISARD", *path, name)).upper().replace("-", "_")
            assert option.envvar
    assert len(set(own.values())) == len(own)
    assert own[("train", "persona-generator"), "output"] == "VISARD_TRAIN_PERSONA_GENERATOR_OUTPUT"
    for name in own.values():
        monkeypatch.setenv(name, "x")
    for path, command in leaves(get_command(app)):
        for name, option in settings._options(command).items():
            assert option.envvar == own[path, name]  # before one that several commands share


def test_the_own_variable_goes_before_the_shared_one(monkeypatch):
    monkeypatch.setenv("VISARD_SERVER", "all:1")
    assert given(*SWAP)["server"] == "all:1"
    monkeypatch.setenv("VISARD_SWAP_SERVER", "one:1")
    assert given(*SWAP)["server"] == "one:1"
    assert given("web")["server"] == "all:1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[swap]\ndeadline = "60"', "[swap] deadline: a number is wanted, not '60'"),
        ("[swap]\ndeadline = 0", "[swap] deadline: "),
        (
            "[swap]\nmin_confidence = 0.6",
            "min_confidence: there is no such option; did you mean min-confidence?",
        ),
        ("[swap]\nidentity = 1", "[swap] identity: true or false is wanted, not 1"),
        ('[swap]\nunswapped = "shw"', "[swap] unswapped: 'shw' is not one of 'cover', 'withhold', 'show'."),
        ('[swap]\nbox = "1,2,3,4"', "[swap] box: a list in brackets, please"),
        ('[swap]\nunswapped = ["show"]', "[swap] unswapped: one value, not a list, please"),
        ("[web]\nport = true", "[web] port: a whole number is wanted, not True"),
        ("[web]\nhost = 5", "[web] host: text in quotes is wanted, not 5"),
        ("[swapp]", "[swapp]: no command is called so; did you mean swap?"),
        ("deadline = 5", "deadline: options stand in the section of a command, such as [swap]"),
        ("[train]\nseed = 5", "[train] seed: options stand in the section of a command, such as [train.prepare]"),
        ("[train.clasifier]", "[train.clasifier]: no command is called so; did you mean classifier?"),
        ('[web]\ntoken = "t"', "[web] token: secrets do not belong into files that are copied; set VISARD_TOKEN"),
        ('[folder]\npersona-key = "k"', "set VISARD_PERSONA_KEY"),
        ('[swap]\nphotos = ["a.jpg"]', "[swap] photos: there is no such option"),
        ('[swap]\nconfig = "b.toml"', "[swap] config: there is no such option"),
        ("[swap", "is not TOML"),
        (None, "cannot read"),
    ],
)
def test_what_no_option_takes_is_refused_with_its_place_whatever_command_runs(elsewhere, text, words):
    file = elsewhere / "a.toml" if text is None else write(elsewhere / "a.toml", text)
    for command in (SWAP, ("check",)):
        with pytest.raises(typer.BadParameter) as refused:
            given(*command, "--config", file)
        assert words in refused.value.message
        assert f"'{file}'" in refused.value.message


def test_options_that_are_better_given_in_the_environment_are_those_that_files_may_not_have():
    said = {
        option.name
        for _, command in leaves(get_command(app))
        for option in settings._options(command).values()
        if "in the environment" in option.help
    }
    assert said == set(SECRETS)


def test_a_file_that_lies_in_the_working_directory_is_not_used_and_that_is_said(elsewhere, capsys):
    stray = write(elsewhere / "here" / "visard.toml", '[swap]\nunswapped = "show"\nserver = "evil:1"\n')
    values = given(*SWAP)
    assert (values["unswapped"], values["server"]) == ("cover", None)
    assert "visard.toml in this folder is not used" in capsys.readouterr().err
    write(elsewhere / "own" / "visard.toml", '[swap]\nunswapped = "withhold"\n')
    assert given(*SWAP)["unswapped"] == "withhold"
    assert "own" in (said := capsys.readouterr().err)
    assert "is not used" in said
    assert given(*SWAP, "--config", stray.name)["unswapped"] == "show"
    assert "is not used" not in capsys.readouterr().err


def test_nothing_is_said_where_there_is_no_file(capsys):
    given("check")
    assert capsys.readouterr().err == ""


# --- completion -------------------------------------------------------------------------------------------------------


def test_bash_completes_commands_options_values_and_files(elsewhere):
    program = write(elsewhere / "bin" / "visard", f'#!/bin/sh\nexec {sys.executable} -m visard_cli "$@"\n')
    program.chmod(0o755)
    ask = "COMP_WORDS=(visard {}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _visard_completion visard; "
    ask += "echo ${{COMPREPLY[*]}}"
    asked = ("train prep", "swap --unswapped w", "swap pho")
    script = ['eval "$(_VISARD_COMPLETE=source_bash visard)"', *map(ask.format, asked), "complete -p visard"]
    env = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", "\n".join(script)], env=env, capture_output=True, text=True, check=True
    )
    *answers, registered = done.stdout.splitlines()
    assert answers == ["prepare", "withhold", ""]
    assert "-o default" in registered  # so that bash completes files where there is no answer


def test_zsh_and_fish_are_answered():
    def ask(what, words=""):
        env = {"_VISARD_COMPLETE": what, "_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        return CliRunner().invoke(app, [], env=env).stdout

    assert '"withhold"' in ask("complete_zsh", "visard swap --unswapped ")
    assert ask("complete_zsh", "visard swap pho").strip() == "_files"
    assert ask("complete_fish", "visard swap --unswapped ").split() == ["cover", "withhold", "show"]
    assert "compdef _visard_completion visard" in ask("source_zsh")
    assert "complete --command visard" in ask("source_fish")
