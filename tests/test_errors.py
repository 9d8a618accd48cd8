"""Every error that a person can mend has a code, and docs/errors.md explains it."""

from __future__ import annotations

import argparse
import ast
import errno
import re
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from dusss_core import errors
from dusss_core.commandline import add_debug, run
from dusss_core.errors import CODES, NotFinite, UserError, code_of, told
from dusss_core.manifest import read_manifest
from feddusss import configfile
from feddusss.command.dispatch import main as feddusss_main
from server.__main__ import main
from server.rounds.coordinator import RoundFailed
from server.runs.runfolder import Busy
from server.study.config import StudyConfig

ROOT = Path(__file__).parent.parent
ROOMS = ("dusss_core", "feddusss", "sites", "client", "server")
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
CODE = re.compile(r"FD\d{3}")


def explained() -> list[str]:
    """The codes of the page's rows, in order."""
    return re.findall(r"^\| (FD\d{3}) \|", (ROOT / "docs" / "errors.md").read_text(encoding="utf-8"), re.MULTILINE)


def in_the_source() -> set[str]:
    """Every string of the source that is a code, and so every code that can be printed."""
    nodes = (node for path in FILES for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and CODE.fullmatch(str(node.value))}


def test_every_code_of_the_source_is_on_the_page_and_the_other_way_round():
    assert set(explained()) == in_the_source()
    assert len(explained()) == len(set(explained())) and explained() == sorted(explained())


def test_every_row_of_the_page_has_meaning_cause_and_remedy():
    rows = [line for line in (ROOT / "docs" / "errors.md").read_text().splitlines() if line.startswith("| FD")]
    assert rows and all(
        len(cells) == 4 and all(cells) for cells in ([c.strip() for c in r.strip("|").split("|")] for r in rows)
    )


def test_names_in_the_table_are_modules_and_each_module_that_raises_has_a_code_of_its_own():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    assert set(CODES) <= set(modules)
    raising = {name for name, path in modules.items() if "raise UserError(" in path.read_text(encoding="utf-8")}
    unnamed = {name for name in raising if code_of(name) == errors.UNNAMED}
    assert unnamed <= {"dusss_core.commandline", "dusss_core.training.finetuning"}


def test_no_module_prints_an_error_past_the_one_place_that_adds_the_code():
    printing = {
        str(path.relative_to(ROOT))
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and str(part.value).startswith("error:")
    }
    assert printing == {"dusss_core/commandline.py"}


@pytest.mark.parametrize("command", [main, feddusss_main], ids=["python -m server", "feddusss"])
def test_a_mistyped_command_has_a_code_too(command, capsys):
    assert command(["simulat"]) == 2
    first, remedy = capsys.readouterr().err.splitlines()
    assert first.endswith("no command 'simulat' [FD102]") and "did you mean 'simulate'?" in remedy


def test_the_code_is_that_of_the_class_then_of_the_module_and_a_given_one_comes_first(tmp_path):
    with pytest.raises(UserError) as caught:
        configfile.load(StudyConfig, tmp_path / "none.yaml")
    assert caught.value.code == "FD101"
    assert (NotFinite("a").code, Busy("a").code, RoundFailed("a").code) == ("FD502", "FD603", "FD503")
    assert (UserError("a", code="FD701").code, code_of("server.deployment.registry")) == ("FD701", "FD402")
    assert code_of("server.deployment.something.new") == "FD401" and code_of("somebody.elses") == "FD100"


def test_a_module_that_is_run_by_its_name_has_the_code_of_its_room():
    # python -m client calls the module __main__, and every error of it was FD100
    run_by_name = {"__name__": "__main__", "__spec__": ModuleSpec("client.__main__", None), "UserError": UserError}
    exec("error = UserError('a')", run_by_name)
    assert run_by_name["error"].code == "FD403"
    exec("error = UserError('a')", a_script := {"__name__": "__main__", "__spec__": None, "UserError": UserError})
    assert a_script["error"].code == "FD100"


def test_the_code_stands_at_the_end_of_the_error_s_line_and_exit_codes_are_as_ever(capsys):
    parser = argparse.ArgumentParser()
    add_debug(parser)

    def raises(error):
        def work(arguments):
            raise error

        return run(work, parser, [])

    assert raises(UserError("a thing\nwith a list", "mend it", "FD101")) == 2
    assert capsys.readouterr().err == "error: a thing [FD101]\nwith a list\n  -> mend it\n"
    assert raises(RoundFailed("too few\n  alder: lost")) == 1
    assert capsys.readouterr().err.startswith("failed: RoundFailed: too few [FD503]\n  alder: lost\n")
    assert raises(ValueError("odd")) == 1 and "[" not in capsys.readouterr().err
    assert str(UserError("a", "b", "FD101")) == "a\n  -> b"  # the text itself has none
    assert told(SystemExit(3)) == "3"


def test_a_command_prints_it(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "no config.yaml [FD601]\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "blamed", "not_blamed"),
    [
        (["segment.roundz=3"], "--set segment.roundz=3: unknown key 'segment.roundz'", "study.yaml"),
        (["seed=2", "segment.rounds=none"], "--set segment.rounds=none: 'segment.rounds'", "seed=2"),
        (["student.network=unet", "vlm=3"], "--set vlm=3: 'vlm'", "study.yaml"),
        (["prox_mu=1"], "--set prox_mu=1: '(top level)': prox_mu is set by the strategy", "study.yaml"),
    ],
)
def test_what_is_wrong_in_set_is_not_blamed_on_the_file(overrides, blamed, not_blamed, tmp_path):
    (tmp_path / "study.yaml").write_text("study: demo\n")
    with pytest.raises(UserError) as caught:
        configfile.load(StudyConfig, tmp_path / "study.yaml", overrides)
    assert blamed in str(caught.value) and not_blamed not in str(caught.value)


def test_what_is_wrong_in_the_file_is_blamed_on_it_whatever_set_says(tmp_path):
    (tmp_path / "study.yaml").write_text("study: demo\nsegment: {roundz: 3}\n")
    with pytest.raises(UserError) as caught:
        configfile.load(StudyConfig, tmp_path / "study.yaml", ["segment.batch=oops"])
    lines = str(caught.value).splitlines()
    assert any(line.startswith("--set segment.batch=oops: 'segment.batch'") for line in lines)
    assert any(line.startswith(f"{tmp_path / 'study.yaml'}: unknown key 'segment.roundz'") for line in lines)


def test_a_full_disk_is_the_users_to_mend_whoever_meets_it_and_an_interruption_says_more(capsys):
    parser = argparse.ArgumentParser()
    add_debug(parser)

    def raises(error):
        def work(arguments):
            raise error

        return run(work, parser, [])

    assert raises(OSError(28, "No space left on device", "/runs/heads")) == 2
    assert capsys.readouterr().err.startswith(
        "error: /runs/heads: No space left on device [FD602]\n  -> free disk space"
    )
    assert raises(OSError(5, "Input/output error")) == 1
    assert raises(KeyboardInterrupt()) == 130 and capsys.readouterr().err.endswith("interrupted\n")
    assert raises(KeyboardInterrupt("go on")) == 130 and capsys.readouterr().err == "interrupted: go on\n"


def test_too_many_open_files_and_a_path_with_a_zero_are_told_as_that(tmp_path, monkeypatch, capsys):
    parser = argparse.ArgumentParser()
    add_debug(parser)
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("id,image\na,b\n")

    def full(*args, **kwargs):
        raise OSError(errno.EMFILE, "Too many open files", str(manifest))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", full)
        assert run(lambda arguments: read_manifest(manifest), parser, []) == 2
    told = capsys.readouterr().err
    assert "too many files are open" in told and "ulimit -n" in told and "permissions" not in told
    assert run(lambda arguments: Path("a\0b").stat(), parser, []) == 2
    assert "a character of code 0" in capsys.readouterr().err


def test_a_tilde_that_the_shell_leaves_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/nobody")
    parser = argparse.ArgumentParser()
    add_debug(parser)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--at", type=Path, nargs="*")
    seen = []
    assert run(seen.append, parser, ["--out=~/run", "--at", "~/a", "b~", "~no-such-account/c"]) == 0
    assert seen[0].out == Path("/home/of/nobody/run")
    assert seen[0].at == [Path("/home/of/nobody/a"), Path("b~"), Path("~no-such-account/c")]
