"""The command `feddusss`: its map is whole, every help is light, a mistyped command is told, and shells complete it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from dusss_core.commandline import commands_of
from feddusss.command import table
from feddusss.command.dispatch import main, whole_parser

ROOT = Path(__file__).parents[2]
ROOMS = ("server", "client", "sites", "dusss_core")
HEAVY = ("torch", "flwr", "transformers", "monai", "timm", "peft", "opacus", "numpy", "scipy", "matplotlib")


def every_help() -> list[list[str]]:
    """The words in front of --help, of every command and of its commands."""
    found, waiting = [], [([], whole_parser())]
    while waiting:
        words, parser = waiting.pop()
        found.append(words)
        waiting += [([*words, name], inner) for name, inner in commands_of(parser).items()]
    return sorted(found)


def test_every_command_of_every_room_is_on_the_map_and_nothing_else():
    for room in ROOMS:
        own = set(commands_of(import_module(f"{room}.__main__").build_parser()))
        named = {entry.verb for entry in table.COMMANDS.values() if entry.room == room}
        assert named == ({""} if room == "client" else own), room


def test_the_map_fits_on_one_screen_and_names_every_command(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100
    assert set(table.COMMANDS) <= {line.split()[0] for line in lines if line.startswith("  ")}


LOOK = f"""
import os, resource, sys
from contextlib import redirect_stdout, suppress
from feddusss.command.dispatch import main
own = os.times().user + os.times().system
for line in sys.stdin.read().splitlines():
    sys.stderr.flush()
    if (child := os.fork()) == 0:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), suppress(SystemExit):
            main([*line.split(), "--help"])
        spent = os.times().user + os.times().system
        heavy = [name for name in {HEAVY!r} if name in sys.modules]
        print(f"{{spent + own:.2f}}", ",".join(heavy) or "-", "feddusss " + line, file=sys.stderr)
        sys.stderr.flush()
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_no_help_of_any_command_imports_anything_heavy():
    commands = every_help()
    assert ["client", "privacy", "plan"] in commands and ["import", "lvit"] in commands and len(commands) > 40
    lines = "\n".join(" ".join(words) for words in commands)
    done = subprocess.run([sys.executable, "-c", LOOK], input=lines, text=True, capture_output=True, check=True)
    told = [line.split(maxsplit=2) for line in done.stderr.splitlines()]
    assert len(told) == len(commands)
    assert [(heavy, command) for _, heavy, command in told if heavy != "-"] == []


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["simulat"], "simulate"),
        (["reqister", "a"], "register"),
        (["client", "audti", "--site", "x"], "audit"),
        (["client", "privacy", "paln"], "plan"),
        (["import", "foldr"], "folder"),
        (["completoin"], "completion"),
    ],
)
def test_a_mistyped_command_gets_the_nearest_name_and_exit_code_2(capsys, words, meant):
    assert main(words) == 2
    assert f"did you mean '{meant}'?" in capsys.readouterr().err


def test_a_command_like_no_other_gets_the_way_to_the_map(capsys):
    assert main(["\x1b[31mqqqq"]) == 2
    told = capsys.readouterr().err
    assert "did you mean" not in told and "feddusss --help" in told and "\x1b" not in told


@pytest.mark.parametrize("words", [words for words in every_help() if words], ids=" ".join)
def test_every_help_calls_the_command_as_it_was_called(capsys, words):
    with pytest.raises(SystemExit) as end:
        main([*words, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: feddusss {' '.join(words)} [-h]")


def test_each_command_of_a_hospital_shows_its_own_options_and_an_example(capsys):
    own = {}
    for name in commands_of(import_module("client.__main__").build_parser()):
        with pytest.raises(SystemExit):
            main(["client", name, "--help"])
        text = capsys.readouterr().out
        assert f"such as:\n  feddusss client {name}" in text
        own[name] = set(re.findall(r"--[a-z-]+", text)) - {"--help", "--site", "--set", "--debug"}
    assert own["init"] == {"--force"} and own["run"] == {"--check"} and own["withdraw"] == {"--by"}
    assert own["audit"] == {"--json", "--last", "--holds"} and own["report"] == {"--study", "--each", "--most"}


def test_the_examples_of_helps_can_be_parsed():
    for words in every_help():
        parser = whole_parser()
        for word in words:
            parser = commands_of(parser)[word]
        for line in (parser.epilog or "").splitlines():
            if "%(prog)s " in line and words[:1] == ["client"] and line.strip().startswith("%(prog)s"):
                arguments = re.split(r" {2,}", line.strip())[0].split()[1:]
                from client.__main__ import with_defaults

                whole_parser().parse_args(["client", *with_defaults([*words[1:], *arguments])])


# Completion.


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> Path:
    """`feddusss` as a file on PATH, whether the project is installed or not."""
    pytest.importorskip("argcomplete")
    folder = tmp_path_factory.mktemp("bin")
    file = folder / "feddusss"
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    file.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path[:0] = {paths!r}\n"
        "from feddusss.command.dispatch import main\nsys.exit(main())\n"
    )
    file.chmod(0o755)
    return file


def completed(command: Path, line: str, folder: Path) -> list[str]:
    """What a real bash offers for `line`, whose cursor is at its end."""
    script = f"""
    eval "$(feddusss completion bash)"
    COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}; COMP_TYPE=9
    COMP_WORDS=($COMP_LINE); [[ $COMP_LINE == *' ' ]] && COMP_WORDS+=('')
    COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
    how=$(complete -p feddusss); how=${{how#*-F }}; "${{how%% *}}" feddusss
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    bash = shutil.which("bash")
    done = subprocess.run(
        [bash, "--norc", "-c", script], cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert not done.stderr, done.stderr
    return [word.strip() for word in done.stdout.split("\n") if word.strip()]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("feddusss sim", ["simulate"]),
        ("feddusss ren", ["renew", "renew-certificate"]),
        ("feddusss client wi", ["withdraw"]),
        ("feddusss client audit --la", ["--last"]),
        ("feddusss export m.safetensors --to torch", ["torchscript"]),
        ("feddusss predict mod", ["model.safetensors"]),
    ],
)
def test_a_real_bash_completes_commands_options_values_and_files(command, tmp_path, line, offered):
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert completed(command, line, tmp_path) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_completion_for(command, shell):
    done = subprocess.run([command, "completion", shell], capture_output=True, text=True)
    assert done.returncode == 0 and "feddusss" in done.stdout
    if (program := shutil.which(shell)) is not None:
        subprocess.run([program, "-n"], input=done.stdout, text=True, check=True)


def test_the_module_is_the_command(capsys):
    done = subprocess.run([sys.executable, "-m", "feddusss", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("feddusss 0.")


@pytest.mark.parametrize(
    "command", [["simulate", "demo"], ["run", "study"], ["federation"]], ids=lambda words: words[0]
)
def test_going_on_with_a_run_and_deleting_it_cannot_both_be_asked_for(command, tmp_path, capsys):
    """`--force` would win, and delete the days of training that `--resume` was to go on with."""
    with pytest.raises(SystemExit) as told:
        main([*command, "--out", str(tmp_path), "--resume", "--force"])
    assert told.value.code == 2
    assert "--force: not allowed with argument --resume" in capsys.readouterr().err
