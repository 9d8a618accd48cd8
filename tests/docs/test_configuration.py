"""The reference of settings files: it is that of the types, leaves no key without a meaning, and its schemas hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from docsite import configuration
from docsite.configuration import Key, keys, kinds
from dusss_core.config import Strict
from dusss_core.errors import UserError
from feddusss import cli, configfile

ROOT = Path(__file__).parents[2]
KINDS = {kind.name: kind for kind in kinds()}
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads((configuration.FOLDER / "schema" / f"{name}.json").read_text("utf-8")))


def kind_of(path: Path) -> str:
    return "site" if path.stem.startswith("site_") else "study"


def test_the_reference_and_the_schemas_are_those_of_the_types():
    assert configuration.main(["--check"]) == cli.OK


def test_a_page_that_is_older_than_the_types_is_told_of(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(configuration, "FOLDER", tmp_path)
    assert configuration.main(["--check"]) == cli.USER_MUST_MEND
    assert configuration.main([]) == cli.OK and configuration.main(["--check"]) == cli.OK
    (tmp_path / "site.md").write_text("old", encoding="utf-8")
    assert configuration.main(["--check"]) == cli.USER_MUST_MEND
    assert "site.md not current" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_no_key_is_without_a_meaning(kind):
    assert not [key.path for key in keys(KINDS[kind].schema) if len(key.meaning) < 8]


def test_a_key_without_a_meaning_is_seen():
    class Undocumented(Strict):
        key: int = 1

    [key] = keys(Undocumented)
    assert isinstance(key, Key) and key.meaning == ""


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_has_a_row(kind):
    page = (configuration.FOLDER / f"{kind}.md").read_text("utf-8")
    others = [other.schema for name, other in KINDS.items() if name != kind]
    for key in keys(KINDS[kind].schema, stop=others):
        assert f"| `{key.path.rpartition('.')[2]}` |" in page, key.path


def test_every_kind_of_file_that_a_command_reads_has_a_page():
    """What is given to `configfile.load` or `configfile.parse` anywhere in the packages."""
    read = set()
    for room in ("dusss_core", "feddusss", "sites", "client", "server"):
        for path in (ROOT / room).rglob("*.py"):
            text = path.read_text("utf-8")
            read |= set(re.findall(r"configfile\.(?:load|parse)\(\s*(\w+)", text))
    # StudyFile is a study of which `check --study` reads a part, TrainingConfig
    assert read == {kind.schema.__name__ for kind in KINDS.values()} | {"StudyFile"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_ready_file_fits_its_schema(path):
    errors = list(validator(kind_of(path)).iter_errors(yaml.safe_load(path.read_text("utf-8"))))
    assert not [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


WRONG = [
    ("study", "segment: {round: 3}"),
    ("study", "segment: {rounds: -1}"),
    ("study", "federation: {strategy: fedavgg}"),
    ("study", "simulation: {data: {kind: synth, synth: {hospitals: 0}}}"),
    ("study", "image: {size: 100}"),
    ("site", "site: a\ndata: {manifest: m.csv}"),
    ("site", "site: a\ndata: {manifest: m.csv}\nstate_dir: s\nlimits: {max_epoch: 3}"),
    ("partition", "by: rows"),
    ("synth", "hospitals: [{train: 3}]"),
]


@pytest.mark.parametrize(("kind", "text"), WRONG)
def test_a_schema_refuses_what_the_program_refuses(kind, text):
    values = yaml.safe_load(text)
    with pytest.raises(UserError):
        configfile.parse(KINDS[kind].schema, values, kind)
    assert list(validator(kind).iter_errors(values))


RIGHT = [
    ("study", "runtime: auto"),
    ("study", "personal: ditto"),
    ("study", "runtime: {amp: auto, eval_batch: 4}"),
    ("study", "simulation: {data: {synth: {hospitals: 5}}, device: [cuda:0, cpu]}"),
    ("study", "federation: {sizes: {a: 3}, round_timeout_s: 60}"),
    ("site", "site: a\ndata: {manifest: m.csv}\nstate_dir: s\nlimits: {phases: [segment], hours: '20:00-06:00'}"),
    ("partition", "label_fraction: {a: 0.5}"),
    ("synth", "hospitals: [{name: a}]"),
]


@pytest.mark.parametrize(("kind", "text"), RIGHT)
def test_a_schema_allows_what_the_program_allows(kind, text):
    values = yaml.safe_load(text)
    configfile.parse(KINDS[kind].schema, values, kind)
    assert not list(validator(kind).iter_errors(values))
