"""A data set is divided without losing a record or tearing a patient apart, and alike every time."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import ValidationError

from dusss_core.errors import UserError
from dusss_core.manifest import Record, read_manifest
from sites.__main__ import main
from sites.config import load_site
from sites.partition import PartitionConfig, partition, write_sites
from tests.sites.builders import rows_of, write_rows


def dataset(n: int = 600) -> list[Record]:
    """`cxr` has three pictures per patient and all of val and test; `covid` names no patients."""
    records = []
    for i in range(n):
        covid = i % 3 == 0
        patient = "" if covid else f"p{i // 9}"
        split = "train" if covid else ("train", "train", "train", "val", "test")[i // 9 % 5]
        records.append(
            Record(
                id=f"r{i}",
                image=Path(f"/images/{i}.png"),
                mask=Path(f"/masks/{i}.png"),
                split=split,
                patient=patient,
                labelled=True,
                extra={"family": "covid" if covid else "cxr", "finding": "abc"[i % 7 % 3]},
                row=i + 2,
            )
        )
    return records


QATA = {
    "by": "column",
    "column": "family",
    "divide": {"cxr": {"into": 2, "by": "patient"}},
    "hold_out": {"val": 0.1, "test": 0.15},
    "official_test": True,
    "label_fraction": 0.25,
}
CONFIGS = [
    {"by": "random", "sites": 4},
    {"by": "column", "column": "family"},
    {"by": "dirichlet", "column": "finding", "sites": 3, "alpha": 1.0},
    {"by": "random", "sites": 3, "hold_out": {"val": 0.2, "test": 0.2}, "keep_splits": False},
    QATA,
]


@pytest.mark.parametrize("config", CONFIGS)
def test_sites_are_disjoint_complete_and_tear_no_patient_apart(config):
    records = dataset()
    sites = partition(records, PartitionConfig(**config), seed=5)
    ids = [record.id for members in sites.values() for record in members]
    assert sorted(ids) == sorted(record.id for record in records)
    places: dict[str, set] = {}
    for name, members in sites.items():
        for record in members:
            if record.patient:
                places.setdefault(record.patient, set()).add((name, record.split))
    assert all(len(where) == 1 for where in places.values())


@pytest.mark.parametrize("config", CONFIGS)
def test_the_same_seed_divides_alike_and_another_does_not(config):
    first, again, other = (partition(dataset(), PartitionConfig(**config), seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other or config == CONFIGS[1]  # by column alone draws nothing


@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[2]])
def test_a_records_site_does_not_depend_on_the_others(config):
    config = PartitionConfig(**config)
    whole = partition(dataset(), config)
    half = partition([record for record in dataset() if int(record.id[1:]) // 9 % 2], config)
    home = {record.id: name for name, members in whole.items() for record in members}
    assert all(home[record.id] == name for name, members in half.items() for record in members)


def test_the_settings_of_qata():
    sites = partition(dataset(), PartitionConfig(**QATA))
    assert list(sites) == ["covid", "cxr_1", "cxr_2", "official_test"]
    assert {record.split for record in sites["official_test"]} == {"test"}
    n = {name: Counter(record.split for record in members) for name, members in sites.items()}
    assert n["covid"] == {"train": 150, "val": 20, "test": 30}
    official = {record.id: record.split for record in dataset()}
    for name in ("cxr_1", "cxr_2"):
        # val is the data set's own, test is drawn from train
        assert all((official[r.id] == "val") == (r.split == "val") for r in sites[name])
        total = n[name]["train"] + n[name]["test"]
        assert 0.15 * total <= n[name]["test"] <= 0.15 * total + 6
        assert {r.extra["family"] for r in sites[name]} == {"cxr"}
    for name, members in sites.items():
        train = [record for record in members if record.split == "train"]
        assert sum(record.labelled for record in train) == -(-len(train) // 4) or name == "official_test"
        assert all(record.mask and record.labelled for record in members if record.split != "train")


def test_label_fractions_are_nested():
    def labelled(fraction):
        sites = partition(dataset(), PartitionConfig(**{**QATA, "label_fraction": fraction}))
        return {record.id for members in sites.values() for record in members if record.labelled}

    assert labelled(0.05) < labelled(0.25) < labelled(0.5) < labelled(1.0)


def test_label_fractions_by_site():
    sites = partition(dataset(), PartitionConfig(by="random", sites=2, label_fraction={"site_1": 0.0}))
    assert not any(r.labelled for r in sites["site_1"] if r.split == "train")
    assert all(r.labelled for r in sites["site_2"])


def hospitals(*sizes: int) -> list[Record]:
    """Labelled training records of hospitals with so many each."""
    return [
        Record(f"{h}_{i}", Path("/i.png"), Path("/m.png"), labelled=True, extra={"hospital": f"h{h}"})
        for h, size in enumerate(sizes)
        for i in range(size)
    ]


def test_labels_of_all_sites_are_the_share_that_was_asked_for():
    def labelled(fraction, labels_of, sizes=(5, 4, 3, 3, 2, 1, 1)):
        config = PartitionConfig(by="column", column="hospital", label_fraction=fraction, labels_of=labels_of)
        sites = partition(hospitals(*sizes), config)
        return [sum(record.labelled for record in members) for members in sites.values()]

    assert labelled(0.5, "site") == [3, 2, 2, 2, 1, 1, 1]
    assert sum(labelled(0.5, "all")) == 10  # of 19, rounded up once
    assert labelled(0.1, "all", (40, 1, 1, 1, 1, 1)) == [5, 0, 0, 0, 0, 0]
    for fraction in (0.05, 0.1, 0.3, 0.5, 0.8, 1.0):
        found = labelled(fraction, "all")
        assert sum(found) == -(-round(100 * fraction) * 19 // 100)
        assert all(abs(n - fraction * size) < 1 for n, size in zip(found, (5, 4, 3, 3, 2, 1, 1), strict=True))


def test_labels_of_all_sites_are_nested_and_in_each_site_those_of_the_site():
    def labelled(fraction, **more):
        config = PartitionConfig(by="column", column="hospital", label_fraction=fraction, **more)
        sites = partition(hospitals(40, 20, 10), config)
        return {record.id for members in sites.values() for record in members if record.labelled}

    parts = [labelled(fraction / 100, labels_of="all") for fraction in range(0, 101, 4)]
    assert all(smaller < larger for smaller, larger in pairwise(parts))
    # where nothing has to be rounded, how the labels are drawn makes no difference
    assert labelled(0.5, labels_of="all") == labelled(0.5)


def of_nobody() -> list[Record]:
    """As `dataset`, but no picture is said to be of the same patient as another."""
    return [replace(record, patient="") for record in dataset()]


def test_a_site_that_is_left_out_is_tested_on_as_a_whole_and_takes_no_part():
    records = of_nobody()
    config = {"by": "column", "column": "finding", "label_fraction": 0.5}
    usual = partition(records, PartitionConfig(**config))
    sites = partition(records, PartitionConfig(**config, left_out="b", subset={"test": 7}))
    assert list(sites) == ["a", "c", "official_test"]
    assert {r.id for r in sites["official_test"]} == {r.id for r in usual["b"]}
    assert {r.split for r in sites["official_test"]} == {"test"} != {r.split for r in usual["b"]}
    for name in ("a", "c"):
        trained = [[r for r in some[name] if r.split != "test"] for some in (usual, sites)]
        assert trained[0] == trained[1]


def test_values_that_are_not_named_stay_away_and_those_that_are_become_what_they_would_have_been():
    records, config = of_nobody(), {"by": "column", "column": "finding", "label_fraction": 0.5}
    usual = partition(records, PartitionConfig(**config))
    some = partition(records, PartitionConfig(**config, only=["c", "a"]))
    assert some == {name: usual[name] for name in ("a", "c")}


def test_a_subset_is_exact_and_nested():
    def ids(n):
        sites = partition(dataset(), PartitionConfig(by="random", sites=2, subset={"train": n, "val": 20, "test": 0}))
        members = [record for site in sites.values() for record in site]
        assert Counter(record.split for record in members) == {"train": n, "val": 20}
        return {record.id for record in members}

    assert ids(50) < ids(100)


def test_a_subset_is_exact_where_the_splits_are_forgotten():
    config = PartitionConfig(sites=2, keep_splits=False, subset={"train": 60, "val": 0}, hold_out={"val": 0.2})
    splits = Counter(record.split for records in partition(dataset(), config).values() for record in records)
    assert splits.total() == 60 and splits["val"] > 5


def test_another_seed_draws_another_subset():
    config = PartitionConfig(by="random", sites=2, subset={"train": 40, "val": 20, "test": 0})

    def drawn(seed):
        sites = partition(dataset(), config, seed=seed)
        return {record.id for records in sites.values() for record in records if record.split == "train"}

    assert drawn(1) == drawn(1) and len(drawn(1) - drawn(2)) > 10


def test_dirichlet_shares_are_uneven_where_alpha_is_small():
    def spread(alpha):
        config = PartitionConfig(by="dirichlet", column="finding", sites=3, alpha=alpha)
        counts = [Counter(r.extra["finding"] for r in m) for m in partition(dataset(3000), config, 3).values()]
        return max(c["a"] / c.total() for c in counts) - min(c["a"] / c.total() for c in counts)

    assert spread(1000.0) < 0.1 < spread(0.5)


def test_hold_out_leaves_something_to_train_on():
    records = [Record(id=f"r{i}", image=Path("a"), extra={"h": "x" if i < 2 else "y"}, row=i + 2) for i in range(12)]
    sites = partition(records, PartitionConfig(by="column", column="h", hold_out={"val": 0.2, "test": 0.2}))
    assert Counter(record.split for record in sites["x"]) == {"train": 1, "test": 1}
    assert Counter(record.split for record in sites["y"]) == {"train": 6, "test": 2, "val": 2}


def test_site_names_are_safe_and_unique(tmp_path):
    values = ["US North", "us-north", "Ünï", "../../etc", "official test", "C#" * 60]
    records = [
        Record(id=f"r{i}", image=tmp_path / "a", extra={"h": value}, row=i + 2) for i, value in enumerate(values)
    ]
    sites = partition(records, PartitionConfig(by="column", column="h"))
    assert set(sites) == {"us_north", "us_north_2", "uni", "etc", "official_test_2", "c_" * 24}
    for file in write_sites(tmp_path, sites):
        assert file.parent.parent == tmp_path
        load_site(file)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"by": "column", "column": "famly"}, r"no column 'famly'\n  -> did you mean 'family'\?"),
        (
            {"by": "column", "column": "family", "divide": {"cxl": {"into": 2}}},
            r"names 'cxl'.*\n  -> did you mean 'cxr'\?",
        ),
        (
            {"by": "column", "column": "family", "divide": {"cxr": {"into": 2, "by": "id"}}},
            "would tear patient",
        ),
        ({"by": "column", "column": "family", "left_out": "cx"}, r"left_out names 'cx'.*\n  -> did you mean 'cxr'\?"),
        ({"by": "column", "column": "family", "only": ["cx"]}, r"only names 'cx'.*\n  -> did you mean 'cxr'\?"),
        ({"by": "random", "sites": 5000}, r"no training records at site_"),
        ({"by": "random", "label_fraction": {"site_9": 0.5}}, r"unknown site 'site_9'"),
    ],
)
def test_a_division_that_cannot_be_is_refused(config, said):
    with pytest.raises(UserError, match=said):
        partition(dataset(), PartitionConfig(**config))


def of_patients(*patients: tuple[str, str]) -> list[Record]:
    """Records of these patients and hospitals."""
    return [
        Record(f"r{i}", Path("/i.png"), patient=patient, extra={"hospital": hospital}, row=i + 2)
        for i, (patient, hospital) in enumerate(patients)
    ]


@pytest.mark.parametrize("left_out", [None, "B"])
def test_a_patient_at_two_hospitals_is_refused_and_named_with_both(left_out):
    records = of_patients(("p1", "A"), ("p2", "A"), ("p1", "B"), ("p3", "B"), ("", "A"), ("", "B"))
    config = PartitionConfig(by="column", column="hospital", left_out=left_out)
    with pytest.raises(UserError, match=r"tear apart: 1: 'p1' \(A and B\)\n  -> give each patient one value"):
        partition(records, config)
    sites = partition([record for record in records if record.patient != "p1"], config)
    assert sum(len(members) for members in sites.values()) == 4
    assert list(partition(records, PartitionConfig(by="column", column="hospital", only=["A"]))) == ["a"]


def test_of_many_patients_at_two_hospitals_some_are_named():
    records = of_patients(*((f"p{i}", hospital) for i in range(9) for hospital in "AB"))
    with pytest.raises(UserError, match=r"9: 'p0' \(A and B\), 'p1' \(A and B\), 'p2' \(A and B\), \.\.\.\n"):
        partition(records, PartitionConfig(by="column", column="hospital"))


def test_a_patient_of_the_official_test_alone_is_torn_apart_by_no_column():
    train = of_patients(("p1", "A"), ("p2", "B"))
    test = [replace(r, id=f"t{r.id}", split="test") for r in of_patients(("p3", "A"), ("p3", "B"))]
    sites = partition([*train, *test], PartitionConfig(by="column", column="hospital", official_test=True))
    assert {name: len(members) for name, members in sites.items()} == {"a": 1, "b": 1, "official_test": 2}


def test_a_part_with_the_name_of_another_site_is_refused():
    records = of_patients(*((f"p{i}", ("A", "A 1")[i % 2]) for i in range(40)))

    def divided(**divide):
        return partition(records, PartitionConfig(by="column", column="hospital", divide=divide))

    with pytest.raises(UserError, match=r"a part of A and A 1 would both be the site 'a_1'\n  -> rename one"):
        divided(A={"into": 2})
    assert list(divided(**{"A": {"into": 2}, "A 1": {"into": 2}})) == ["a_1", "a_1_1", "a_1_2", "a_2"]


def test_an_empty_cell_is_named_with_its_row():
    records = dataset()
    records[4].extra["family"] = ""
    with pytest.raises(UserError, match=r"row 6 \(id 'r4'\) has no value in column 'family'"):
        partition(records, PartitionConfig(by="column", column="family"))


@pytest.mark.parametrize(
    "config",
    [
        {"by": "column"},
        {"by": "random", "divide": {"a": {"into": 2}}},
        {"hold_out": {"val": 0.5, "test": 0.5}},
        {"label_fraction": 1.5},
        {"official_test": True, "keep_splits": False},
        {"label_fraction": {"a": 0.5}, "labels_of": "all"},
        {"by": "random", "left_out": "a"},
        {"by": "random", "only": ["a"]},
        {"by": "column", "column": "family", "left_out": "a", "official_test": True},
    ],
)
def test_settings_that_contradict_each_other_are_refused(config):
    with pytest.raises(ValidationError):
        PartitionConfig(**config)


def test_what_is_written_is_the_partition(tmp_path):
    records = read_manifest(write_rows(tmp_path / "m.csv", rows_of(tmp_path, 24, ("train", "train", "test"))))
    sites = partition(records, PartitionConfig(by="random", sites=2, official_test=True, label_fraction=0.5))
    for file, (name, members) in zip(write_sites(tmp_path / "out", sites), sites.items(), strict=True):
        site = load_site(file)
        assert site.site == name
        assert site.state_dir == file.parent / "state"
        assert site.limits.phases == ([] if name == "official_test" else ["pretrain", "segment"])
        read = read_manifest(site.data.manifest)
        assert [(r.id, r.split, r.labelled, r.image) for r in read] == [
            (r.id, r.split, r.labelled, r.image) for r in members
        ]


def test_the_command_names_what_a_study_would_lack_and_sites_left_over(tmp_path, capsys):
    manifest = write_rows(tmp_path / "m.csv", rows_of(tmp_path, 24, ("train", "test")))
    arguments = ["partition", str(manifest), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--set", "sites=3"]) == 0
    out, err = capsys.readouterr()
    assert "(train " in out and ", test " in out
    assert "no val records: site_1, site_2, site_3; --set hold_out.val" in err
    assert "no test" not in err and "earlier" not in err
    assert main([*arguments, "--force", "--set", "sites=2", "--set", "hold_out.val=0.5"]) == 0
    out, err = capsys.readouterr()
    assert ", val " in out and "no val" not in err
    assert err.rstrip().endswith("remove them: site_3")
