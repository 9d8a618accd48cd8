"""A config file says each thing once, and what `--set` cannot be is told by the option."""

from __future__ import annotations

import pytest

from dusss_core.errors import UserError
from feddusss import configfile
from sites.config import load_site

SITE = "site: north\nstate_dir: state\ndata: {manifest: manifest.csv}\nlimits: {approval: true, studies: [ours]}\n"


def test_a_block_that_is_written_twice_takes_nothing_away_from_the_first(tmp_path):
    """The last of two would stand alone: here without approval, and for any study."""
    path = tmp_path / "site.yaml"
    path.write_text(SITE)
    assert load_site(path).limits.approval
    path.write_text(SITE + 'limits:\n  hours: "20:00-06:00"\n')
    with pytest.raises(UserError, match=r"site\.yaml: line 5, column 1: 'limits' stands here and in line 4"):
        load_site(path)


def test_a_key_may_stand_in_several_places_and_in_what_is_merged(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {d: {<<: *a, y: 4}}\n")
    assert configfile.read_yaml(path) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"d": {"x": 1, "y": 4}}}


@pytest.mark.parametrize(
    "value", ["2024-02-30", "{a: 1, a: 2}", "[" * 3000, "9" * 5000, "'"], ids=lambda value: value[:9]
)
def test_a_value_that_is_none_is_told_by_its_option(tmp_path, value):
    (tmp_path / "site.yaml").write_text(SITE)
    with pytest.raises(UserError, match="--set site="):
        load_site(tmp_path / "site.yaml", [f"site={value}"])
