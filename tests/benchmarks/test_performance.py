"""docs/performance.md is what its JSON files say."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import hierarchy, measured, performance, performance_page


def test_the_page_is_what_its_files_say():
    assert performance.PAGE.read_text(encoding="utf-8") == performance.page()


def test_the_page_follows_its_files(tmp_path):
    for file in measured.RESULTS.glob("*.json"):
        text = file.read_text(encoding="utf-8")
        (tmp_path / file.name).write_text(text.replace('"date": "2', '"date": "3'))
    assert performance.page(tmp_path) != performance.page()
    for file in tmp_path.glob("*.json"):
        file.unlink()
    assert performance_page.NOT_YET in performance.page(tmp_path)


def test_every_part_is_measured_by_a_command_that_is_there():
    named = Namespace(results=measured.RESULTS, quick=False, against=Path(), nvflare=Path("python"))
    for name, lines in performance.commands(named).items():
        assert name in performance.PARTS and lines
        for line in lines:
            place = line[1].replace(".", "/") + ".py" if line[0] == "-m" else line[0]
            assert (measured.HERE / place).is_file()


def test_what_cannot_be_measured_here_is_left_out():
    named = Namespace(results=measured.RESULTS, quick=True, against=None, nvflare=None)
    assert performance.commands(named)["nvflare"] == []


@pytest.mark.parametrize("sites", [100, 1000])
def test_a_coordinator_without_relays_is_done_when_it_has_added_every_answer(sites):
    slow = hierarchy.Constants(seconds=1e6, megabytes=1.0)
    assert hierarchy.tree(sites, sites, slow).up_s == pytest.approx(sites * 1e6, rel=1e-3)
    quick = hierarchy.Constants(seconds=1e-6, megabytes=1e-9)
    assert hierarchy.tree(sites, sites, quick).up_s < 1e-3


def test_relays_add_side_by_side_and_there_are_as_many_as_the_fan_out_asks():
    constants = hierarchy.Constants(seconds=1e6, megabytes=1.0)
    one = hierarchy.tree(1000, 10, constants)
    assert (one.levels, one.relays) == (3, 110)
    assert one.up_s == pytest.approx(30e6, rel=1e-3)
    assert one.down_s == pytest.approx(3 * 10 * 0.008)


def test_an_answer_takes_the_longer_of_adding_and_sending():
    assert hierarchy.Constants(0.1, 59.0).up_s == pytest.approx(0.472)
    assert hierarchy.Constants(1.0, 59.0).up_s == 1.0
