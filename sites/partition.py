"""One data set divided into several sites: by a column, at random, or unevenly by a Dirichlet draw.

Every draw is a hash of the seed and of the patient (the record's id where no patient is named), so that a
patient is never torn apart, and what happens to one record does not depend on which others there are. Only
sizes that must be met exactly (`subset`, `hold_out`) go by the order of the hashes.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from dusss_core.config import Strict
from dusss_core.errors import UserError
from dusss_core.manifest import COLUMNS, Record, label_order, labelled_by_fraction, share_of, write_manifest
from dusss_core.seeds import derive_seed, unit_hash
from sites.config import write_site

OFFICIAL_TEST = "official_test"
"""Name of the site that holds the data set's own test split."""
_SHOWN = 3
"""Patients that an error names."""


class DivideConfig(Strict):
    """Divides the records of one value of the column further."""

    into: int = Field(ge=2)
    """Sites to make of it; they are called value_1, value_2, ..."""
    by: Literal["patient", "id"] = "patient"
    """What is hashed. id: every record by itself, only where no patient is named."""


class HoldOutConfig(Strict):
    """Splits that are drawn from a site's training records where the site has none."""

    val: float = Field(0.0, ge=0, lt=1)
    """Share of the site's training records that become its validation split."""
    test: float = Field(0.0, ge=0, lt=1)
    """Share of the site's training records that become its test split."""

    @model_validator(mode="after")
    def _leave_some(self) -> HoldOutConfig:
        if self.val + self.test >= 1:
            raise ValueError("val and test together take all records")
        return self


class SubsetConfig(Strict):
    """At most this many records of each split, drawn over the whole data set. null: all."""

    train: int | None = Field(None, ge=1)
    """Training records."""
    val: int | None = Field(None, ge=0)
    """Validation records."""
    test: int | None = Field(None, ge=0)
    """Test records."""


class PartitionConfig(Strict):
    """How a data set becomes sites."""

    by: Literal["column", "random", "dirichlet"] = "random"
    """column: one site per value of `column`. random: `sites` sites of about equal size. dirichlet: `sites`
    sites with uneven shares of each value of `column`."""
    column: str | None = None
    """Column of the manifest, for by: column and by: dirichlet."""
    sites: int = Field(3, ge=1)
    """Number of sites, for by: random and by: dirichlet; they are called site_1, site_2, ..."""
    alpha: float = Field(0.5, gt=0)
    """Concentration of the Dirichlet draw; small: sites differ much."""
    divide: dict[str, DivideConfig] = Field(default={})
    """Values of `column` that become several sites, for by: column."""
    keep_splits: bool = True
    """Off: the manifest's splits are forgotten and all records are training records before `hold_out`
    draws."""
    hold_out: HoldOutConfig = HoldOutConfig()
    """Validation and test splits for sites that have none."""
    subset: SubsetConfig = SubsetConfig()
    """Use only a part of the data set."""
    label_fraction: float | dict[str, float] = 1.0
    """Share of each site's training masks that may be trained on, for all sites or by site (1 for those not
    named)."""
    labels_of: Literal["site", "all"] = "site"
    """What `label_fraction` is a share of. site: of each site's masks, rounded up at each, so that many small sites
    have more labels than it says. all: of the masks of all sites together, rounded up once, and divided among the sites
    as whole pictures allow (Webster's method); a small site may get none."""
    official_test: bool = False
    """The data set's own test split becomes a site of its own that only evaluates; the others hold out their
    own."""
    only: list[str] | None = Field(None, min_length=1)
    """For by: column: values of `column` whose records take part; all others stay away. null: all."""
    left_out: str | None = None
    """For by: column: a value of `column` whose site takes no part. All its records, of every split, become the site
    official_test, which only evaluates."""

    @model_validator(mode="after")
    def _check(self) -> PartitionConfig:
        if self.by != "random" and not self.column:
            raise ValueError(f"by: {self.by} needs a column")
        if self.divide and self.by != "column":
            raise ValueError("divide goes with by: column")
        fractions = self.label_fraction.values() if isinstance(self.label_fraction, dict) else [self.label_fraction]
        if not all(0 <= fraction <= 1 for fraction in fractions):
            raise ValueError("label_fraction lies between 0 and 1")
        if self.labels_of == "all" and isinstance(self.label_fraction, dict):
            raise ValueError("labels_of: all goes with one label_fraction for all sites")
        if self.left_out is not None and (self.by != "column" or self.official_test):
            raise ValueError("left_out goes with by: column, and without official_test")
        if self.only and self.by != "column":
            raise ValueError("only goes with by: column")
        if self.official_test and not self.keep_splits:
            raise ValueError("official_test needs the manifest's splits; set keep_splits: true")
        return self


def partition(records: Iterable[Record], config: PartitionConfig, seed: int = 1) -> dict[str, list[Record]]:
    """Divide `records` into sites.

    Returns:
        Site name -> its records, in the manifest's order, with `split` and `labelled` as they are at that
        site. Names are sorted, the official test comes last.

    Raises:
        UserError: no such column or value, an empty cell in it, a patient under two values of it, a site without
            training records, a label fraction for an unknown site.
    """
    records = _only(list(records), config)
    _refuse_torn(records, config)
    records, official = _leave_out(records, config)
    if not config.keep_splits:
        records = [replace(record, split="train") for record in records]
    records = _subset(records, config.subset, seed)
    if config.official_test:
        official = [record for record in records if record.split == "test"]
        records = [record for record in records if record.split != "test"]
        if not official:
            raise UserError("partition: official_test is set, but the manifest has no test records", "unset it")
    sites = {
        name: _hold_out(members, config.hold_out, seed)
        for name, members in sorted(_divide(records, config, seed).items())
    }
    _check_sites(sites, config)
    sites = _label(sites, config)
    return {**sites, OFFICIAL_TEST: official} if official else sites


def write_sites(folder: Path, sites: dict[str, list[Record]], **settings: str | bool | int | None) -> list[Path]:
    """Write `folder`/NAME/manifest.csv and site.yaml for every site; its state goes to `folder`/NAME/state.

    Args:
        settings: of `write_site`, the same for all.

    Returns:
        The site files.
    """
    files = []
    for name, records in sites.items():
        write_manifest(folder / name / "manifest.csv", records)
        evaluates_only = all(record.split == "test" for record in records)
        files.append(write_site(folder / name, name, evaluates_only=evaluates_only, **settings))
    return files


def _only(records: list[Record], config: PartitionConfig) -> list[Record]:
    """The records whose site may take part."""
    if config.only is None:
        return records
    values = [_cell(record, config.column) for record in records]
    for value in config.only:
        if value not in values:
            raise UserError(*_unknown("only", value, config.column, values))
    return [record for record, value in zip(records, values, strict=True) if value in config.only]


def _refuse_torn(records: list[Record], config: PartitionConfig) -> None:
    """A patient under two values of the column would be at two sites, or be trained and tested on."""
    if config.by != "column":
        return
    values: dict[str, dict[str, None]] = defaultdict(dict)
    for record in records:
        together = config.official_test and record.split == "test"  # these become one site, whatever the column says
        if record.patient and not together:
            values[record.patient][_cell(record, config.column)] = None
    torn = {patient: held for patient, held in values.items() if len(held) > 1}
    if torn:
        shown = ", ".join(f"'{patient}' ({' and '.join(held)})" for patient, held in list(torn.items())[:_SHOWN])
        raise UserError(
            f"partition: patients under several values of column '{config.column}', whom it would tear apart: "
            f"{len(torn)}: {shown}{', ...' if len(torn) > _SHOWN else ''}",
            "give each patient one value; where two hospitals gave different people the same key, "
            "put the hospital's name before it",
        )


def _leave_out(records: list[Record], config: PartitionConfig) -> tuple[list[Record], list[Record]]:
    """The records that take part, and those of the site that does not, all of them test records."""
    if config.left_out is None:
        return records, []
    values = [_cell(record, config.column) for record in records]
    if config.left_out not in values:
        raise UserError(*_unknown("left_out", config.left_out, config.column, values))
    pairs = list(zip(records, values, strict=True))
    left_out = [replace(record, split="test") for record, value in pairs if value == config.left_out]
    return [record for record, value in pairs if value != config.left_out], left_out


def _subset(records: list[Record], config: SubsetConfig, seed: int) -> list[Record]:
    kept: set[str] = set()
    for split, most in config:
        ids = [record.id for record in records if record.split == split]
        ids.sort(key=lambda identity: unit_hash(seed, "subset", identity))
        kept.update(ids[:most])
    return [record for record in records if record.id in kept]


def _divide(records: list[Record], config: PartitionConfig, seed: int) -> dict[str, list[Record]]:
    if config.by == "column":
        return _by_column(records, config, seed)
    if config.by == "dirichlet":
        return _by_dirichlet(records, config, seed)
    sites = _empty_sites(config.sites)
    for record in records:
        sites[_site_name(unit_hash(seed, "random", *record.group) * config.sites)].append(record)
    return sites


def _by_column(records: list[Record], config: PartitionConfig, seed: int) -> dict[str, list[Record]]:
    values = [_cell(record, config.column) for record in records]
    names = _slugs(sorted(set(values)))
    for value in config.divide:
        if value not in names:
            raise UserError(*_unknown("divide", value, config.column, names))
    whole = {name: value for value, name in names.items() if value not in config.divide}
    sites: dict[str, list[Record]] = defaultdict(list)
    for value, divide in config.divide.items():
        parts = [f"{names[value]}_{i + 1}" for i in range(divide.into)]
        for name in parts:
            if name in whole:
                raise UserError(
                    f"partition: a part of {value} and {whole[name]} would both be the site '{name}'",
                    f"rename one of the two in column '{config.column}'",
                )
        sites.update({name: [] for name in parts})
    for record, value in zip(records, values, strict=True):
        divide = config.divide.get(value)
        if divide is None:
            sites[names[value]].append(record)
            continue
        if divide.by == "id" and record.patient:
            raise UserError(
                f"partition: divide {value} by id would tear patient '{record.patient}' apart",
                "use by: patient",
            )
        part = int(unit_hash(seed, "divide", value, *record.group) * divide.into)
        sites[f"{names[value]}_{part + 1}"].append(record)
    return dict(sites)


def _by_dirichlet(records: list[Record], config: PartitionConfig, seed: int) -> dict[str, list[Record]]:
    """Each value's shares of the sites are one draw of Dir(alpha); a patient counts under the commonest
    value."""
    held: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for record in records:
        held[record.group][_cell(record, config.column)] += 1
    value_of = {group: min(counts, key=lambda v: (-counts[v], v)) for group, counts in held.items()}
    ends = {}
    for value in sorted(set(value_of.values())):
        draw = np.random.default_rng(derive_seed(seed, "dirichlet", value))
        ends[value] = np.cumsum(draw.dirichlet([config.alpha] * config.sites))[:-1]
    sites = _empty_sites(config.sites)
    for record in records:
        value = value_of[record.group]
        position = unit_hash(seed, "dirichlet", value, *record.group)
        sites[_site_name(np.searchsorted(ends[value], position, side="right"))].append(record)
    return sites


def _empty_sites(n: int) -> dict[str, list[Record]]:
    return {_site_name(i): [] for i in range(n)}


def _site_name(position: float) -> str:
    return f"site_{int(position) + 1}"


def _cell(record: Record, column: str | None) -> str:
    own = {name: str(getattr(record, name)) for name in COLUMNS if name in ("id", "text", "split", "patient")}
    cells = {**own, **record.extra}
    if column not in cells:
        near = difflib.get_close_matches(column or "", cells, n=1, cutoff=0.4)
        raise UserError(
            f"partition: the manifest has no column '{column}'",
            f"did you mean '{near[0]}'?" if near else f"its columns: {', '.join(cells)}",
        )
    if not cells[column]:
        raise UserError(
            f"partition: row {record.row} (id '{record.id}') has no value in column '{column}'",
            "fill the column, or drop the row",
        )
    return cells[column]


def _unknown(key: str, value: str, column: str | None, values: Iterable[str]) -> tuple[str, str]:
    """The problem, and the remedy."""
    known = sorted(set(values))
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.4)
    return (
        f"partition: {key} names '{value}', which column '{column}' does not hold",
        f"did you mean '{near[0]}'?" if near else f"its values: {', '.join(known)}",
    )


def _slugs(values: list[str]) -> dict[str, str]:
    """Safe and unique site names for the values of a column."""
    names: dict[str, str] = {}
    taken = {OFFICIAL_TEST}
    for value in values:
        plain = unicodedata.normalize("NFKD", value).encode("ascii", "ignore").decode()
        base = re.sub(r"[^a-z0-9]+", "_", plain.lower()).strip("_")[:48] or "site"
        name, n = base, 2
        while name in taken:
            name, n = f"{base}_{n}", n + 1
        taken.add(name)
        names[value] = name
    return names


def _hold_out(records: list[Record], config: HoldOutConfig, seed: int) -> list[Record]:
    """Whole patients become the site's test and val, in order of their hash; train keeps at least one."""
    sizes = Counter(record.group for record in records if record.split == "train")
    groups = sorted(sizes, key=lambda group: unit_hash(seed, "hold_out", *group))
    n_train = sizes.total()
    becomes: dict[tuple[str, str], str] = {}
    for split, share in (("test", config.test), ("val", config.val)):
        if not share or any(record.split == split for record in records):
            continue
        wanted, drawn = max(1, round(share * n_train)), 0
        while len(groups) > 1 and drawn < wanted:
            becomes[groups[0]] = split
            drawn += sizes[groups.pop(0)]
    return [
        replace(record, split=becomes.get(record.group, "train")) if record.split == "train" else record
        for record in records
    ]


def _check_sites(sites: dict[str, list[Record]], config: PartitionConfig) -> None:
    empty = [name for name, records in sites.items() if not any(record.split == "train" for record in records)]
    if empty:
        raise UserError(
            f"partition: no training records at {', '.join(empty)}",
            "use fewer sites, a larger alpha or another "
            "seed; or keep_splits: false, if the records are there but all in val or test",
        )
    if isinstance(config.label_fraction, dict):
        for name in config.label_fraction:
            if name not in sites:
                near = difflib.get_close_matches(name, sites, n=1, cutoff=0.4)
                raise UserError(
                    f"partition: label_fraction names the unknown site '{name}'",
                    f"did you mean '{near[0]}'?" if near else f"the sites: {', '.join(sites)}",
                )


def _fraction(config: PartitionConfig, site: str) -> float:
    if isinstance(config.label_fraction, dict):
        return config.label_fraction.get(site, 1.0)
    return config.label_fraction


def _label(sites: dict[str, list[Record]], config: PartitionConfig) -> dict[str, list[Record]]:
    if config.labels_of == "all":
        chosen = _labelled_of_all(list(sites.values()), config.label_fraction)
    else:
        each = (labelled_by_fraction(members, _fraction(config, name)) for name, members in sites.items())
        chosen = set().union(*each)
    return {
        name: [
            replace(record, labelled=record.id in chosen) if record.split == "train" else record for record in members
        ]
        for name, members in sites.items()
    }


def _labelled_of_all(sites: Iterable[list[Record]], fraction: float) -> set[str]:
    """As `labelled_by_fraction`, but of all sites together: the k-th of n masks of a site, in the order of their hash,
    stands at (k - 1/2) / n in the common order. So each site's share is right to half a picture or so, and a smaller
    fraction is a subset of a larger one."""
    places = [
        ((k + 0.5) / len(ids), unit_hash("label", identity), identity)
        for ids in map(label_order, sites)
        for k, identity in enumerate(ids)
    ]
    return {identity for *_, identity in sorted(places)[: share_of(fraction, len(places))]}
