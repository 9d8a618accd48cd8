"""A config file says each thing once, and what `--set` cannot be is told by the option."""

from __future__ import annotations

import re

import pytest
import yaml

from dusss_core.errors import UserError
from feddusss import configfile
from server.study.config import StudyConfig
from sites.config import SiteConfig, load_site

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


def numbers(schema: type) -> list[str]:
    """Dotted keys of a settings type that its JSON schema calls numbers."""
    shape = schema.model_json_schema()

    def keys(part: dict, before: tuple[str, ...]) -> list[str]:
        kinds = [part, *part.get("anyOf", [])]
        found = [".".join(before)] if {kind.get("type") for kind in kinds} & {"integer", "number"} else []
        for kind in kinds:
            inner = shape["$defs"][kind["$ref"].rpartition("/")[2]] if "$ref" in kind else kind
            found += [key for name, one in inner.get("properties", {}).items() for key in keys(one, (*before, name))]
        return found

    return keys(shape, ())


@pytest.mark.parametrize(("schema", "values"), [(StudyConfig, {}), (SiteConfig, yaml.safe_load(SITE))])
def test_true_is_a_number_for_no_key(schema, values):
    """`min_records: yes` would be 1."""
    keys = numbers(schema)
    assert "limits.min_records" in keys or "segment.optimizer.lr" in keys
    for key in keys:
        with pytest.raises(UserError, match=f"'{re.escape(key)}'.*true or false"):
            configfile.parse(schema, values, "FILE", [f"{key}=yes"])


@pytest.mark.parametrize("value", ["[dusss]", "{dusss: 1}", "5", "true"])
def test_a_preset_that_is_no_word_is_told_with_its_key(value):
    with pytest.raises(UserError, match=r"'method\.preset'"):
        configfile.parse(StudyConfig, {"method": {"preset": yaml.safe_load(value)}}, "FILE")
