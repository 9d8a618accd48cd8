"""What `benchmarks/private_dice.py` can measure: studies, means and variants, and the public students to start from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dusss_core.errors import UserError

EPSILONS = ("1", "2", "4", "8")
VARIANTS = (*EPSILONS, "none", "preset")
START = "0"
"""A further variant, of means that start from a public student: what that is worth before any private training."""
METHODS = ("mean_teacher", "supervised", "dusss")


@dataclass(frozen=True)
class Means:
    """What is done so that less noise does less harm."""

    told: str = ""
    """In the table."""
    public: Literal["", "synthetic", "hospital"] = ""
    """Start from a student that was trained on synthetic pictures, or on those of the study's public hospital."""
    network: tuple[str, ...] = ()
    """Changes of the study, with a budget and without."""
    private: tuple[str, ...] = ()
    """Changes of the study with a budget."""
    in_chart: str = ""
    """Its line's name, where that of the means is too long for it."""


_ENCODER = ("student.encoder=tf_efficientnet_lite0", "student.weights=imagenet")
# the same noise per step hurts the sum of all records least, and few steps of all cost what many of a few do
_HEAD = (
    "privacy.student=head",
    "privacy.sample_rate=1",
    "privacy.steps_per_round=10",
    "privacy.clip=1",
    "segment.rounds=6",
    "segment.optimizer.lr=0.02",
)
# chosen on validation from 0.001, 0.005, 0.02 and 0.05
_TWO_LAYERS = (
    "privacy.student=head",
    "privacy.keep_features=true",
    "privacy.sample_rate=1",
    "privacy.steps_per_round=10",
    "privacy.clip=1",
    "segment.rounds=8",
    "segment.optimizer.lr=0.05",
)
# small steps: the head is good already, and AdamW moves each weight by about the learning rate, be it for noise alone
_WARM_HEAD = (
    "privacy.student=head",
    "privacy.keep_features=true",
    "privacy.sample_rate=1",
    "privacy.steps_per_round=5",
    "privacy.clip=1",
    "segment.rounds=4",
    "segment.optimizer.lr=0.005",
)
_FINE_TUNED = ("segment.rounds=8", "segment.optimizer.lr=1.0e-3")
MEANS = {
    "": Means(),
    "public": Means("public start", "synthetic"),
    "decoder": Means("public start, decoder trained", "synthetic", private=("privacy.student=decoder",)),
    "norms": Means("public start, norms trained", "synthetic", private=("privacy.student=norms",)),
    "imagenet": Means("ImageNet encoder, head trained", network=(*_ENCODER, *_FINE_TUNED), private=_HEAD),
    "imagenet_public": Means(
        "ImageNet encoder, public start, head trained", "synthetic", (*_ENCODER, *_FINE_TUNED), _HEAD, "ImageNet+"
    ),
    "two_layers": Means(
        "ImageNet encoder, public start, head of two layers trained",
        "synthetic",
        (*_ENCODER, "student.hidden=16", *_FINE_TUNED),
        _TWO_LAYERS,
        "two layers",
    ),
    "hospital": Means(
        "start from a public hospital, head trained",
        "hospital",
        (*_ENCODER, *_FINE_TUNED),
        _WARM_HEAD,
        "public hospital",
    ),
}

_HOSPITALS = [
    {**hospital, "val": 40, "test": 120, "train": 3000, "label_fraction": 0.1}
    for hospital in (
        {"name": "north", "wording": "terse", "scanner": {"noise": 0.02, "blur": 0.35}},
        {
            "name": "harbour",
            "wording": "zonal",
            "scanner": {"gain": 0.85, "gamma": 0.8, "noise": 0.03, "blur": 0.25, "vignette": 0.25},
        },
        {"name": "valley", "wording": "report", "scanner": {"gain": 1.1, "gamma": 1.25, "level": 0.04, "blur": 0.5}},
    )
]
STUDIES: dict[str, dict[str, Any]] = {
    # about 1500 patients at each hospital: with the preset's 160 pictures, of 80 patients, noise outweighs all; and
    # findings that are plain to see: the preset's look takes hundreds of steps to learn even without noise
    "demo": {
        "pictures": (
            f"simulation.data.synth.hospitals={json.dumps(_HOSPITALS)}",
            "simulation.data.synth.contrast=3",
        ),
        "training": (
            "segment.rounds=25",
            "segment.optimizer.lr=2.0e-3",
            "privacy.sample_rate=0.04",
            "privacy.steps_per_round=20",
        ),
    },
    # all training pictures: covid has 2400 (no patient is named), cxr_1 and cxr_2 about 330 patients each
    "qata_cpu": {
        "pictures": ("simulation.partition.subset.train=null", "simulation.workers=2", "simulation.threads=1"),
        # half the preset's width: a quarter of the parameters, so half the noise in their sum
        "training": (
            "student.width=8",
            "segment.rounds=20",
            "segment.optimizer.lr=2.0e-3",
            "privacy.sample_rate=0.05",
            "privacy.steps_per_round=20",
        ),
    },
    # one of two institutions has published its pictures; the other's are at two hospitals, divided by patient
    "qata_cxr": {
        "preset": "qata_cpu",
        "manifest": "qata_cov19/manifest.csv",
        "public": ("family", "covid"),
        "public_rounds": 5,
        "pictures": (
            "study=qata_cxr",
            "simulation.partition.official_test=false",
            "simulation.partition.label_fraction=1",
            "simulation.partition.hold_out={}",
            'simulation.partition.subset={"train": null, "val": 200, "test": 500}',
            "simulation.workers=1",
            "simulation.threads=1",
        ),
        "training": ("student.width=8", "runtime.eval_batch=16"),
    },
    # one of six hospitals has published its pictures
    "polypgen": {
        "preset": "qata_cpu",
        "manifest": "polypgen/manifest.csv",
        "public": ("centre", "C3"),
        "public_rounds": 15,
        "pictures": (
            "study=polypgen",
            'image={"channels": 3, "size": 128}',
            'simulation.partition={"by": "column", "column": "centre"}',
            "simulation.workers=1",
            "simulation.threads=1",
        ),
        "training": ("student.width=8", "runtime.eval_batch=16", "segment.turns=true"),
    },
}
"""`pictures`: for every variant. `training`: for all but `preset`, so that a budget alone makes the difference.
`preset`: the study that is changed, if not that of the name. `public`: column and value of the `manifest` whose records
are a public hospital's; all others are private."""
_PUBLIC_DISEASE = {"two_findings": 0.6, "radius_min": 5, "radius_max": 12}
_PUBLIC_HOSPITALS = [
    {
        "name": name,
        "train": 900,
        "val": 60,
        "test": 60,
        "label_fraction": 1,
        "disease": _PUBLIC_DISEASE,
        "scanner": scanner,
    }
    for name, scanner in (
        ("sharp", {"noise": 0.02, "blur": 0.8}),
        ("soft", {"gain": 0.8, "gamma": 0.8, "noise": 0.03, "blur": 1.5, "vignette": 0.2}),
    )
]
_PUBLIC_STUDY = (
    "method.preset=supervised",
    "segment.rounds=12",
    "segment.batch=16",
    "segment.optimizer.lr=3.0e-3",
    "simulation.data.synth.distractors_min=0",
    "simulation.data.synth.distractors_max=0",
    f"simulation.data.synth.hospitals={json.dumps(_PUBLIC_HOSPITALS)}",
)
_PUBLIC_HOSPITAL = (
    "method.preset=supervised",
    "local_norm=false",
    "segment.batch=16",
    "segment.optimizer.lr=1.0e-3",
    "segment.patience=1000",
    'simulation.partition={"by": "random", "sites": 1, "keep_splits": false, "hold_out": {"val": 0.1}}',
)
_FOR_ALL = ("simulation.privacy.records_per_patient=1",)
_AT_EQUAL_TERMS = (
    "local_norm=false",
    "student.norm=group",
    "privacy.clip=0.3",
    # a private site sends no validation figure to choose a round by
    "federation.select=last",
    "segment.patience=1000",
)


@dataclass(frozen=True)
class Variant:
    """One run."""

    study: str
    method: str
    name: str
    seed: int
    means: str = ""

    def __post_init__(self):
        chosen = ((self.study, STUDIES), (self.method, METHODS), (self.name, (*VARIANTS, START)), (self.means, MEANS))
        for value, known in chosen:
            if value not in known:
                raise UserError(f"{value}: not known", f"one of: {', '.join(known)}")
        means = MEANS[self.means]
        if self.name == START and not means.public:
            raise UserError(f"{START}: nothing public to start from", "name --means that start from a public student")
        if means.public == "hospital" and "public" not in STUDIES[self.study]:
            raise UserError(f"{self.study}: has no public hospital", "choose another study, or other --means")

    @property
    def preset(self) -> str:
        """The study that `overrides` change."""
        return STUDIES[self.study].get("preset", self.study)

    @property
    def file(self) -> str:
        method = "" if self.name == "preset" else "-".join(("", self.method, *([self.means] if self.means else [])))
        return f"{self.study}{method}-{self.name}-seed{self.seed}"

    def overrides(self) -> list[str]:
        """What the run's study changes in its file."""
        changes = STUDIES[self.study]
        told = [f"seed={self.seed}", *_FOR_ALL, *changes["pictures"]]
        if self.name != "preset":
            told += [f"method.preset={self.method}", *_AT_EQUAL_TERMS, *changes["training"]]
        means = MEANS[self.means]
        told += means.network
        if self.name in EPSILONS:
            told += [f"simulation.privacy.epsilon={self.name}", *means.private]
        if self.name == START:
            told.append("segment.rounds=0")
        return told


def places_of(variant: Variant, data: Path | None, work: Path) -> list[str]:
    """Settings that name folders of this machine: where the variant's pictures lie, and its public start.

    What is public is made here, once, in `work`.

    Raises:
        UserError: the study reads a data set, and `data` names no folder.
    """
    hospitals = hospitals_of(variant, data, work)
    root = hospitals if hospitals is not None else data
    places = [] if root is None else [f"data.root={root.absolute()}"]
    if hospitals is not None:
        places.append("simulation.data.path=private.csv")
    kind = MEANS[variant.means].public
    if kind:
        start = _of_hospital(variant, hospitals, work) if kind == "hospital" else _of_synthetic(variant, work)
        places.append(f"student.weights={start}")
    return places


def hospitals_of(variant: Variant, data: Path | None, work: Path) -> Path | None:
    """A folder with public.csv and private.csv, of the study's data set; None where none of it is public."""
    from dusss_core.manifest import read_manifest, write_manifest

    study = STUDIES[variant.study]
    if "public" not in study:
        return None
    if data is None:
        raise UserError(f"{variant.study}: reads a data set", "name the folder of the data sets with --data DIR")
    column, value = study["public"]
    folder = work / f"{variant.study}-hospitals"
    folder.mkdir(parents=True, exist_ok=True)
    records = read_manifest(Path(data).absolute() / study["manifest"])
    for name, published in (("public", True), ("private", False)):
        if (folder / f"{name}.csv").is_file():
            continue  # a run that goes on goes by when its manifest was written
        some = [record for record in records if (record.extra[column] == value) == published]
        write_manifest(folder / f"{name}.csv", some)
    return folder


def _of_hospital(variant: Variant, hospitals: Path, work: Path) -> Path:
    """A student of the study's shape, trained on all pictures of the public hospital, from ImageNet weights."""
    from server.simulation.simulate import simulate
    from server.study.config import load_study

    study = STUDIES[variant.study]
    folder = (work / f"public-{variant.study}-seed{variant.seed}").absolute()
    settings = [f"seed={variant.seed}", *study["pictures"], *study["training"], *_ENCODER, "student.norm=group"]
    settings += [*_PUBLIC_HOSPITAL, f"segment.rounds={study['public_rounds']}"]
    settings += [f"data.root={hospitals.absolute()}", "simulation.data.path=public.csv"]
    simulate(load_study(variant.preset, settings), folder, resume=True)
    return folder / "checkpoints" / "student.safetensors"


def _of_synthetic(variant: Variant, work: Path) -> Path:
    """A student of the study's shape, trained on synthetic pictures without look-alikes; made once."""
    from server.simulation.simulate import simulate
    from server.study.config import load_study

    study = load_study(variant.preset, variant.overrides())
    student = study.student
    shape = [f"student.{key}={value}" for key, value in student.model_dump().items() if value is not None]
    size = [f"{key}={study.image.size}" for key in ("image.size", "simulation.data.synth.size")]
    name = "-".join(["public", *([student.encoder] if student.encoder else []), str(student.width), student.norm])
    name += f"-hidden{student.hidden}" if student.hidden else ""
    folder = (work / f"{name}-{study.image.size}").absolute()
    pace = MEANS[variant.means].network and ["segment.optimizer.lr=1.0e-3"]
    simulate(load_study("demo", ["local_norm=false", *shape, *size, *_PUBLIC_STUDY, *pace]), folder, resume=True)
    return folder / "checkpoints" / "student.safetensors"
