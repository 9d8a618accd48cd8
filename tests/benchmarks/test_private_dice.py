"""Dice against epsilon: each variant is measured once, at equal terms, and the page says what the files say."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from benchmarks import private_dice, private_studies
from benchmarks.private_dice import BEGIN, END
from benchmarks.private_studies import STUDIES, VARIANTS, Variant
from dusss_core.errors import UserError
from dusss_core.phases import Phase
from dusss_core.privacy.mechanism import reasons_against
from server.simulation.materialise import simulation_of
from server.study.config import load_study
from tests.client import fake_private
from tests.client.fake_private import RECORDS
from tests.server.conftest import HOSPITALS, fake  # noqa: F401


def result(variant, dice, seed=1, method="mean_teacher"):
    epsilon = float(variant) if variant.isdigit() else None
    site = {"dice": dice, "privacy": {"spent": epsilon and epsilon - 0.01}} if epsilon else {"dice": dice}
    return {
        "study": "demo",
        "method": method,
        "variant": variant,
        "seed": seed,
        "epsilon": epsilon,
        "dice": {"mean": dice, "weighted": dice, "worst": dice and dice - 0.1},
        "sites": {"north": site},
        "privacy": {"noise_multiplier": 1.166} if epsilon else None,
    }


@pytest.mark.parametrize("study", ["demo", "qata_cpu"])
def test_a_budget_alone_makes_the_difference_to_none(study):
    studies = {
        name: load_study(study, Variant(study, "mean_teacher", name, 1).overrides()).model_dump() for name in VARIANTS
    }
    privacy = {name: values["simulation"].pop("privacy") for name, values in studies.items()}
    assert studies["1"] == studies["8"] == studies["none"]
    assert [privacy[name].get("epsilon") for name in VARIANTS] == [1, 2, 4, 8, None, None]
    # as shipped, but for the pictures, which are the same in every variant
    shipped = load_study(study).model_dump()
    assert studies["preset"]["simulation"] == studies["none"]["simulation"]
    assert {key for key in shipped if shipped[key] != studies["preset"][key]} == {"simulation"}


@pytest.mark.parametrize("study", ["demo", "qata_cpu"])
def test_every_private_variant_is_possible_and_its_noise_can_be_planned(study):
    from server.simulation.privacy import plan_noise

    noise = []
    for name in ("1", "2", "4", "8"):
        given = load_study(study, Variant(study, "mean_teacher", name, 1).overrides())
        assert reasons_against(given.training(), Phase.SEGMENT, 300) == []
        noise.append(plan_noise(given, simulation_of(given).privacy).privacy.noise_multiplier)
    assert noise == sorted(noise, reverse=True) and noise[-1] > 0.5


@pytest.mark.parametrize("study", [name for name in STUDIES if "public" in STUDIES[name]])
def test_with_a_public_hospital_too_a_budget_alone_makes_the_difference(study):
    from server.simulation.privacy import plan_noise

    def given(name):
        return load_study(STUDIES[study]["preset"], Variant(study, "supervised", name, 1, "hospital").overrides())

    private, plain, start = given("8"), given("none"), given("0")
    assert reasons_against(private.training(), Phase.SEGMENT, 100) == []
    noise = plan_noise(private, simulation_of(private).privacy).privacy.noise_multiplier
    assert 2.6 < noise < 2.8
    assert start.segment.rounds == 0 and simulation_of(start).privacy.epsilon is None
    for one in (private, start):
        assert one.student == plain.student and one.image == plain.image
        assert one.simulation.partition == plain.simulation.partition


def test_the_public_hospital_s_records_and_no_others_are_public(tmp_path):
    from dusss_core.manifest import Record, read_manifest, write_manifest

    (tmp_path / "polypgen").mkdir()
    for name in "abc":
        (tmp_path / "polypgen" / f"{name}.png").touch()
    records = [
        Record(name, tmp_path / "polypgen" / f"{name}.png", extra={"centre": centre}, split=split)
        for name, centre, split in (("a", "C3", "test"), ("b", "C1", "train"), ("c", "C3", "train"))
    ]
    write_manifest(tmp_path / "polypgen" / "manifest.csv", records)
    folder = private_studies.hospitals_of(Variant("polypgen", "supervised", "8", 1, "hospital"), tmp_path, tmp_path)
    ids = {kind: [record.id for record in read_manifest(folder / f"{kind}.csv")] for kind in ("public", "private")}
    assert ids == {"public": ["a", "c"], "private": ["b"]}


@pytest.mark.parametrize(
    ("variant", "told"),
    [
        (("demo", "supervised", "0", 1), "nothing public"),
        (("demo", "supervised", "8", 1, "hospital"), "no public hospital"),
    ],
)
def test_a_start_that_there_is_not_is_told(variant, told):
    with pytest.raises(UserError, match=told):
        Variant(*variant)


def test_an_unknown_variant_is_told(capsys):
    assert private_dice.main(["demo", "--variants", "16"]) == 2
    assert "16: not known" in capsys.readouterr().err


def test_a_variant_is_measured_once_and_its_file_holds_the_figures(fake, monkeypatch, tmp_path, capsys):  # noqa: F811
    fake_private.install(monkeypatch)
    command = ["demo", "--variants", "8", "none", "--results", str(tmp_path / "results"), "--work", str(tmp_path / "w")]
    hospitals = json.dumps([{**hospital, "val": 2} for hospital in HOSPITALS])
    for setting in (
        f"simulation.data.synth.hospitals={hospitals}",
        "simulation.data.synth.size=32",
        "simulation.workers=1",
        f"simulation.privacy.records={RECORDS}",
        "image.size=32",
        "segment.rounds=2",
    ):
        command += ["--set", setting]
    assert private_dice.main(command) == 0
    files = sorted((tmp_path / "results").iterdir())
    assert [file.name for file in files] == ["demo-mean_teacher-8-seed1.json", "demo-mean_teacher-none-seed1.json"]
    private, plain = (json.loads(file.read_text()) for file in files)
    assert private["dice"]["mean"] > 0 and plain["dice"]["mean"] > 0
    assert private["privacy"]["noise_multiplier"] > 0 and plain["privacy"] is None
    assert all(7.9 < site["privacy"]["spent"] <= 8 for site in private["sites"].values())
    before = [file.read_bytes() for file in files]
    capsys.readouterr()
    assert private_dice.main(command) == 0
    assert capsys.readouterr().out.count("measured already") == 2
    assert [file.read_bytes() for file in files] == before


def test_the_page_says_what_the_files_say(tmp_path):
    results = [result("8", 0.61), result("8", 0.65, seed=2), result("1", 0.4), result("none", 0.7)]
    results.append(result("preset", 0.72, method="dusss"))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    private_dice.write_page(results, page, tmp_path / "images")
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n") and text.endswith(f"{END}\nafter\n") and "old" not in text
    assert "| mean_teacher | 8 | 1.166 | 7.99 | 63.0 (61.0 to 65.0) | 53.0 (51.0 to 55.0) |" in text
    rows = [line.split("|")[2].strip() for line in text.splitlines() if line.startswith(("| mean", "| dusss"))]
    assert rows == ["1", "8", "no budget", "no budget, as shipped"]
    root = ElementTree.parse(tmp_path / "images" / "dice_epsilon_demo.svg").getroot()
    shown = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"1", "2", "4", "8", "none", "epsilon of every hospital", "as shipped"} <= set(shown)
    titles = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert "mean_teacher, epsilon of every hospital 8: 0.63" in titles
    private_dice.write_page(results, page, tmp_path / "images")
    assert page.read_text() == text


def test_what_the_start_alone_is_worth_stands_before_every_budget():
    results = [result("8", 0.61), result("0", 0.58), result("none", 0.7)]
    rows = [line.split("|")[2].strip() for line in private_dice.table(results).splitlines() if "| mean" in line]
    assert rows == ["0: the start alone", "8", "no budget"]
    assert "mean_teacher: 0.580, 0.610, 0.700" in private_dice.chart("demo", results)
    assert ">0</text>" in private_dice.chart("demo", results)
    assert ">0</text>" not in private_dice.chart("demo", results[::2])


def test_without_results_or_a_marker_there_is_no_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("no marker\n")
    with pytest.raises(UserError, match="no results"):
        private_dice.write_page([], page, tmp_path)
    with pytest.raises(UserError, match="lacks a marker"):
        private_dice.write_page([result("8", 0.6)], page, tmp_path)
