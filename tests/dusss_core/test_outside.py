"""Text that came from outside is written in one line, short, and without a character that a terminal obeys."""

from __future__ import annotations

import argparse
import time

import pytest

from dusss_core import commandline
from dusss_core.build import build_student, build_vlm
from dusss_core.config import TrainingConfig
from dusss_core.errors import UserError
from dusss_core.manifest import read_manifest
from dusss_core.outside import shown, shown_lines
from feddusss.configfile import read_yaml

HOSTILE = "a\nb\r\x1b[2Jc\u202ed\ud800\x00\u2028e"


def test_a_text_stays_in_its_line_and_moves_no_cursor():
    assert shown(HOSTILE) == r"a\nb\r\x1b[2Jc\u202ed\ud800\x00\u2028e"
    assert shown("ä 漢 -> x") == "ä 漢 -> x"


def test_a_long_text_is_cut_and_says_so():
    assert shown("x" * 501) == "x" * 500 + "... (501 characters)"
    assert len(shown("\n" * 10**7)) < 1100


def test_a_text_of_lines_has_no_line_that_could_be_the_logs_own():
    told = shown_lines("Traceback\n2026-01-01T00:00:00 train: answered\n\x1b[2J")
    assert told == "Traceback\n    | 2026-01-01T00:00:00 train: answered\n    | \\x1b[2J"
    many = shown_lines("\n".join(map(str, range(10**5)))).split("\n")
    assert len(many) == 201 and many[0] == "0" and many[-1].endswith("| 99999")


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (UserError("row 3: a\x1b[2Jb", "mend it"), 2, "row 3: a\\x1b[2Jb [FD100]\n  -> mend it"),
        (RecursionError("maximum"), 2, "brackets within brackets"),
        (OSError(36, "File name too long", "x" * 5000), 2, "longer than a path may be"),
        (ValueError("\x1b"), 1, "ValueError: \\x1b"),
    ],
)
def test_an_error_is_told_without_what_a_terminal_obeys(capsys, error, code, told):
    def main(arguments):
        raise error

    parser = argparse.ArgumentParser()
    commandline.add_debug(parser)
    assert commandline.run(main, parser, []) == code
    err = capsys.readouterr().err
    assert told in err and "\x1b" not in err and len(err) < 1000


@pytest.mark.parametrize(
    "text",
    ["[" * 20_000, "a: " + "{a: " * 5000, "day: 2026-13-45", "seed: " + "9" * 5000],
    ids=["list", "map", "date", "number"],
)
def test_a_file_of_settings_that_nobody_wrote_gets_an_error_with_its_name(tmp_path, text):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(UserError, match=r"study\.yaml"):
        read_yaml(tmp_path / "study.yaml")


@pytest.mark.parametrize("field", [("student", "encoder"), ("vlm", "image_encoder")])
def test_an_over_long_name_of_an_encoder_costs_no_time(field):
    part, name = field
    started = time.process_time()
    with pytest.raises(ValueError, match="at most 200 characters"):
        TrainingConfig.model_validate({part: {name: "x" * 40_000}})
    assert time.process_time() - started < 1
    longest = TrainingConfig.model_validate({part: {name: "x" * 200}})
    started = time.process_time()
    with pytest.raises(UserError):
        (build_student if part == "student" else build_vlm)(longest)
    assert time.process_time() - started < 10  # timm is read first


@pytest.mark.parametrize("text", ['{"segment": {"optimizer": {"lr": 1e400}}}', '{"prox_mu": 1e400}'])
def test_a_number_without_end_is_no_setting(text):
    with pytest.raises(ValueError, match="finite number"):
        TrainingConfig.model_validate_json(text)


def test_a_parquet_column_that_is_not_utf8_is_named_with_its_row(tmp_path):
    import pyarrow
    import pyarrow.parquet

    values = pyarrow.array([b"fine", b"\xff\xfe"]).view(pyarrow.string())
    table = pyarrow.table({"id": ["a", "b"], "image": ["a.png", "b.png"], "text": values})
    pyarrow.parquet.write_table(table, tmp_path / "manifest.parquet")
    with pytest.raises(UserError, match="row 3: column 'text' is not UTF-8 text"):
        read_manifest(tmp_path / "manifest.parquet")


def test_an_over_long_path_in_a_manifest_is_a_missing_file_of_its_row(tmp_path):
    (tmp_path / "manifest.csv").write_text(f"id,image\na,{'x' * 5000}.png\n")
    with pytest.raises(UserError, match=r"row 2: image file not found"):
        read_manifest(tmp_path / "manifest.csv")
