"""The cells of the accuracy grid train and test on what they say."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.grid.cell import DATASETS, NETWORKS, PROFILES, Cell
from benchmarks.grid.hospitals import groups_of_sites, partition_of, same_test_for_all_seeds, without_sentences
from benchmarks.grid.methods import find_method
from benchmarks.grid.methods.presets import METHODS
from benchmarks.grid.sentences import CONSTANT, others, tell
from benchmarks.grid.trial import make_study
from dusss_core.config import TEXT_NETWORKS, MethodConfig, merged
from dusss_core.errors import UserError
from dusss_core.manifest import Record, read_manifest, write_manifest
from dusss_core.objectives import reads_sentences
from dusss_core.text.wording import may_flip, wordings
from sites.partition import PartitionConfig, partition
from tests.benchmarks.conftest import empty_picture

SPLITS = {"train": 14, "val": 2, "test": 4}


@pytest.fixture
def data(tmp_path) -> Path:
    """A manifest like PolypGen's, of few pictures."""
    picture = empty_picture(tmp_path / "polypgen")
    records = [
        Record(
            f"C{centre}_{split}_{i}",
            image=picture,
            mask=picture,
            text=f"Finding {i % 5} of hospital {centre}.",
            split=split,
            labelled=True,
            extra={"centre": f"C{centre}", "text_meta": "Dark."},
        )
        for centre in range(1, 7)
        for split, n in SPLITS.items()
        for i in range(n)
    ]
    write_manifest(tmp_path / "polypgen" / "manifest.csv", records)
    return tmp_path


def _groups(data, method="dusss", setting="federated", labels=0.1, **more):
    cell = Cell("polypgen", labels, method, setting, "cpu", 1, **more)
    study = make_study(cell, data, changes=METHODS[method])
    return groups_of_sites(cell, study, data / "work" / cell.hospitals)


def _records(files) -> dict[str, list[Record]]:
    return {file.parent.name: read_manifest(file.parent / "manifest.csv") for file in files}


@pytest.mark.parametrize("setting", ["centralized", "federated", "local", "iid"])
def test_every_hospitals_own_test_is_tested_on_in_every_setting(data, setting):
    groups = _groups(data, setting=setting).values()
    tested = [r.id for group in groups for some in _records(group.tested).values() for r in some if r.split == "test"]
    assert sorted(tested) == sorted(f"C{centre}_test_{i}" for centre in range(1, 7) for i in range(4))


def test_pooled_and_federated_train_on_the_same_pictures_and_labels(data):
    ((_, pooled),), ((_, federated),) = (_groups(data, setting=s).items() for s in ("centralized", "federated"))
    (one,) = _records(pooled.sites).values()
    assert {r.id.split("-", 1)[1]: (r.split, r.labelled, r.text) for r in one} == {
        r.id: (r.split, r.labelled, r.text) for some in _records(federated.sites).values() for r in some
    }
    assert sum(r.labelled for r in one if r.split == "train") == 9  # 10 % of 84


def test_of_a_hospital_that_is_left_out_every_picture_is_the_test_and_none_is_trained_on(data):
    ((_, group),) = _groups(data, setting="left_out_C3").items()
    records = _records(group.sites)
    assert list(records) == ["c1", "c2", "c4", "c5", "c6", "official_test"]
    assert Counter(r.split for r in records["official_test"]) == {"test": sum(SPLITS.values())}
    assert {r.extra["centre"] for r in records["official_test"]} == {"C3"}


@pytest.mark.parametrize(
    ("dataset", "setting", "same"),
    [
        ("polypgen", "federated", True),
        ("polypgen", "left_out_C2", True),
        ("polypgen", "iid", False),
        ("qata", "centralized", False),
        ("monuseg", "federated", False),
    ],
)
def test_pictures_count_as_the_same_for_all_seeds_where_no_seed_draws_them(dataset, setting, same):
    assert same_test_for_all_seeds(Cell(dataset, 0.1, "dusss", setting, "cpu", 1)) is same


def test_the_sentences_are_those_of_the_column(data):
    ((_, group),) = _groups(data, text="text_meta").items()
    assert {r.text for some in _records(group.sites).values() for r in some} == {"Dark."}
    with pytest.raises(UserError, match="--text text_mata: no sentences of polypgen"):
        Cell("polypgen", 0.1, "dusss", "federated", "cpu", 1, "text_mata")
    with pytest.raises(UserError, match="no sentences of qata"):
        Cell("qata", 0.1, "dusss", "federated", "cpu", 1, "text_meta")


def test_cells_with_other_sentences_share_no_files(data):
    usual = Cell("polypgen", 0.1, "dusss", "federated", "cpu", 1)
    cells = [usual, Cell("polypgen", 0.1, "dusss", "federated", "cpu", 1, "text_meta")]
    cells += [Cell("polypgen", 0.1, name, "federated", "cpu", 1) for name in ("constant_sentence", "wrong_sentence")]
    assert len({cell.hospitals for cell in cells}) == len({cell.name for cell in cells}) == 4
    assert Cell("polypgen", 0.1, "supervised", "federated", "cpu", 1).hospitals == usual.hospitals


@pytest.mark.parametrize("method", ["constant_sentence", "picture_only_teacher", "constant_sentence_polypgen"])
def test_the_same_sentence_for_all_tells_nothing_in_any_view(data, method):
    ((_, group),) = _groups(data, method, "centralized").items()
    assert {r.text for some in _records([*group.sites, *group.tested]).values() for r in some} == {CONSTANT}
    assert set(wordings(CONSTANT, 8)) == {CONSTANT} and may_flip(CONSTANT)


def test_every_row_starts_from_the_weights_of_the_method():
    def study(method):
        cell = Cell("polypgen", 0.1, method, "centralized", "cpu_imagenet", 1)
        return make_study(cell, Path("data"), changes=METHODS[method])

    dusss = study("dusss")
    assert (dusss.student.weights, dusss.vlm.weights, dusss.vlm.mirror) == ("imagenet", "imagenet", True)
    for method in ("supervised", "mean_teacher", "constant_sentence", "wrong_sentence", "picture_only_teacher"):
        other = study(method)
        assert (other.student, other.segment, other.pretrain) == (dusss.student, dusss.segment, dusss.pretrain)
        same = {"cross_attention": dusss.vlm.cross_attention}
        assert other.vlm.model_copy(update=same) == dusss.vlm
    teacher = study("picture_only_teacher")
    assert not teacher.vlm.cross_attention and teacher.method.grounding_supervision
    assert teacher.method.grounding_consistency and teacher.method.text_mask


@pytest.mark.parametrize("setting", ["centralized", "federated"])
def test_wrong_sentences_are_other_pictures_of_the_same_hospital_and_split(data, setting):
    ((_, usual),), ((_, wrong),) = (_groups(data, m, setting).items() for m in ("dusss", "wrong_sentence"))
    before, after = _records(usual.tested), _records(wrong.tested)
    for site, records in before.items():
        pairs = list(zip(records, after[site], strict=True))
        assert all(a.id == b.id and a.text != b.text for a, b in pairs)
        for split in SPLITS:
            some = [(a.text, b.text) for a, b in pairs if a.split == split]
            assert Counter(a for a, _ in some) == Counter(b for _, b in some)
    trained = {r.id.split("-", 1)[-1]: r.text for some in _records(wrong.sites).values() for r in some}
    assert trained == {r.id: r.text for some in after.values() for r in some}


def test_a_cell_that_is_begun_again_has_the_same_wrong_sentences(data):
    first, second = (_records(next(iter(_groups(data, "wrong_sentence").values())).sites) for _ in range(2))
    assert first == second


def test_what_a_control_withholds_no_further_sentence_tells(data):
    records = read_manifest(data / "polypgen" / "manifest.csv")
    for number, control in enumerate(("constant", "wrong", None)):
        file = data / str(number) / "site.yaml"
        more = [replace(record, more_texts=("The truth.",)) for record in records]
        write_manifest(file.parent / "manifest.csv", more)
        tell([file], control, seed=1) if control else without_sentences(file)
        told = [record.sentences for record in read_manifest(file.parent / "manifest.csv")]
        assert all(len(texts) == (0 if control is None else 1) and "The truth." not in texts for texts in told)


@pytest.mark.parametrize(("commonest", "equal"), [(2, 0), (10, 0), (13, 6), (20, 20)])
def test_equal_sentences_are_avoided_as_far_as_there_are_others(commonest, equal):
    texts = ["a"] * commonest + [f"b{i % 4}" for i in range(20 - commonest)]
    for seed in range(20):
        found = others(texts, np.random.default_rng(seed))
        assert Counter(found) == Counter(texts)
        assert sum(a == b for a, b in zip(found, texts, strict=True)) == equal


def test_which_wrong_sentence_a_picture_gets_does_not_follow_from_its_own():
    texts = [name for name in "abcd" for _ in range(250)]
    found = others(texts, np.random.default_rng(1))
    pairs = Counter(zip(texts, found, strict=True))
    assert len(pairs) == 12 and min(pairs.values()) > 50


def test_all_rows_of_table_2_differ_in_its_switches_alone():
    for prefix in ("table2", "paper_table2"):
        rows = {name: MethodConfig(**METHODS[f"{prefix}_{name}"]["method"]).model_dump() for name in _NAMES}
        assert {(row["sss"], row["dcl"], row["ltg"]) for row in rows.values()} == {
            tuple(digit == "1" for digit in name) for name in _NAMES
        }
        others = [{k: v for k, v in row.items() if k not in ("sss", "dcl", "ltg")} for row in rows.values()]
        assert all(other == others[0] for other in others)
        supervised = prefix == "table2"
        assert (others[0]["grounding_supervision"], others[0]["grounding_consistency"]) == (supervised, supervised)
    assert METHODS["table2_111"]["method"] == {"preset": "dusss", "sss": True, "dcl": True, "ltg": True}


def test_every_network_that_is_given_sentences_has_a_row_a_fair_one_and_a_control(data):
    for network in TEXT_NETWORKS:
        given, fair, control = (
            make_study(Cell("polypgen", 0.1, name, "federated", "cpu", 1), data, changes=METHODS[name])
            for name in (network, f"{network}_dropout", f"supervised_{network}")
        )
        assert {study.student.network for study in (given, fair, control)} == {network}
        assert [reads_sentences(study) for study in (given, fair, control)] == [True, True, False]
        assert (given.student.text_dropout, fair.student.text_dropout) == (0, 0.2)
        assert {study.segment.optimizer.lr for study in (given, fair, control)} == {given.segment.optimizer.lr}
        assert list(control.phases()) == ["segment"]


def test_a_network_names_its_size_and_peak_learning_rate_once_a_profile_for_every_method(data, monkeypatch):
    own = {"student": {"layers": 3, "patch": 16}, "segment": {"optimizer": {"lr": 5e-4}}}
    monkeypatch.setitem(NETWORKS, ("polypgen", "cpu"), {"vilt": own})

    def study_of(name, **changes):
        cell = Cell("polypgen", 0.1, name, "federated", "cpu", 1)
        return make_study(cell, data, changes=merged(METHODS[name], changes))

    for name in ("vilt", "vilt_dropout", "supervised_vilt"):
        assert (study_of(name).segment.optimizer.lr, study_of(name).student.layers) == (5e-4, 3)
        assert study_of(name).segment.rounds == study_of("supervised").segment.rounds
    for name in ("lvit", "supervised", "dusss"):
        assert study_of(name).segment.optimizer.lr == 4e-3 and study_of(name).student.layers == 12
    # what the method itself says wins
    assert study_of("vilt", segment={"optimizer": {"lr": 0.1}}).segment.optimizer.lr == 0.1


def test_vilt_is_small_on_two_cores_and_of_full_size_on_a_gpu(data):
    sizes = {}
    for profile in ("cpu", "gpu"):
        study = make_study(Cell("qata", 0.1, "vilt", "centralized", profile, 1), data, changes=METHODS["vilt"])
        sizes[profile] = (12 * study.student.width, study.student.layers, study.student.patch)
    assert sizes == {"cpu": (192, 6, 16), "gpu": (768, 12, 32)}


def test_the_full_profile_draws_nothing_from_the_official_split():
    drawn = partition_of(Cell("qata", 1.0, "supervised", "centralized", "full", 1))
    config = PartitionConfig.model_validate(drawn)
    counts = {"train": 30, "val": 9, "test": 12}
    records = [
        Record(f"{family}_{split}_{i}", Path("/i.png"), Path("/m.png"), split=split, extra={"family": family})
        for family in ("covid", "cxr")
        for split, n in counts.items()
        if split == "train" or family == "cxr"
        for i in range(n)
    ]
    sites = partition(records, config, seed=1)
    found = {record.id: record.split for members in sites.values() for record in members}
    assert found == {record.id: record.split for record in records}


@pytest.mark.parametrize(("dataset", "profile"), [(d, p) for d in DATASETS for p in PROFILES if p in DATASETS[d]])
def test_every_profile_is_a_study(dataset, profile):
    make_study(Cell(dataset, 0.1, "dusss", "federated", profile, 1), Path("data"))


_NAMES = [f"{i:03b}" for i in range(8)]


def test_every_name_is_a_method():
    assert all(callable(find_method(name)) for name in METHODS)
    with pytest.raises(UserError, match="not known"):
        find_method("table2_222")
