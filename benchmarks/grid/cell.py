"""One cell of the grid, and the study it starts from: pictures, networks, schedule, of a data set and a profile."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dusss_core.config import merged
from dusss_core.errors import UserError

PROFILES = ("cpu", "cpu_imagenet", "full", "gpu")
"""gpu: the paper's size. cpu: sized for two cores, the paper's student narrowed. cpu_imagenet: the same pictures, and a
student whose way down has public ImageNet weights. full: such a student on all pictures of the official split at the
paper's 224 x 224, for two cores and some hours; call it with --time-limit."""
OWN_TEXT = "text"
"""The column that every manifest has."""
CONTROL_OF = {"constant_sentence": "constant", "wrong_sentence": "wrong", "picture_only_teacher": "constant"}
"""Method of the grid, in whatever federation -> the control that it is (`benchmarks.grid.sentences`)."""
_TEXT = {"views": 1, "max_tokens": 32}
_IMAGENET = {"image_encoder": "tf_efficientnet_lite0", "weights": "imagenet"}
_SMALL_VLM = {**_IMAGENET, "dim": 64, "decoder_width": 24, "text": _TEXT}
_IMAGENET_STUDENT = {"width": 16, "encoder": _IMAGENET["image_encoder"], "weights": "imagenet"}


@dataclass(frozen=True)
class Cell:
    """What is measured."""

    dataset: str
    labels: float
    """Share of the training masks that may be trained on, in (0, 1]."""
    method: str
    setting: str
    profile: str
    seed: int
    text: str = OWN_TEXT
    """Column of the data set's manifest that holds the sentences."""

    def __post_init__(self):
        if self.dataset not in DATASETS:
            raise UserError(f"--dataset {self.dataset}: not known", f"one of: {', '.join(DATASETS)}")
        columns = (OWN_TEXT, *DATASETS[self.dataset]["source"].get("other_text", ()))
        if self.text not in columns:
            raise UserError(f"--text {self.text}: no sentences of {self.dataset}", f"one of: {', '.join(columns)}")
        known = [profile for profile in PROFILES if profile in DATASETS[self.dataset]]
        if self.profile not in known:
            raise UserError(f"--profile {self.profile}: not for {self.dataset}", f"one of: {', '.join(known)}")
        if not 0 < self.labels <= 1:
            raise UserError(
                f"--labels {self.labels:g}: not a share", "give a number above 0 and at most 1, such as 0.05"
            )

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self._data}-{self.method}-{self.setting}{self._told}-seed{self.seed}"

    @property
    def hospitals(self) -> str:
        """Of its sites' folder, which the cells of all methods with the same sentences share."""
        control = f"-{self.control}" if self.control else ""
        return f"hospitals-{self._data}-{self.setting}{self._told}{control}-seed{self.seed}"

    @property
    def control(self) -> str | None:
        """The control of its sentences (`benchmarks.grid.sentences`); None: they are as they are."""
        found = (control for row, control in CONTROL_OF.items() if f"{self.method}_".startswith(f"{row}_"))
        return next(found, None)

    @property
    def _data(self) -> str:
        return f"{self.dataset}-{self.profile}-{100 * self.labels:g}pct".replace(".", "_")

    @property
    def _told(self) -> str:
        return "" if self.text == OWN_TEXT else f"-{self.text}"

    @property
    def small(self) -> bool:
        """Whether it is sized for two cores."""
        return self.profile != "gpu"

    def base(self) -> dict[str, Any]:
        """The study before method and setting have their say."""
        study = copy.deepcopy(DATASETS[self.dataset][self.profile])
        return {**study, "study": f"{self.dataset}_{self.profile}", "seed": self.seed}

    def values(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The study with a method's changes, and with what its network changes of the profile (NETWORKS)."""
        values = merged(self.base(), changes)
        network = values["student"].get("network")
        return merged(merged(self.base(), NETWORKS.get((self.dataset, self.profile), {}).get(network, {})), changes)

    def source(self) -> dict[str, Any]:
        """The data set as `simulation.data` and `simulation.partition` name it, sites not yet chosen."""
        source = copy.deepcopy(DATASETS[self.dataset]["source"])
        if self.text != OWN_TEXT:
            source["data"]["text_column"] = self.text
        return source


_SMALL = {"train": 2800, "val": 300, "test": 500}
_QATA = {
    "source": {
        "data": {"kind": "manifest", "path": "qata_cov19/manifest.csv"},
        "sites": ("covid", "cxr_1", "cxr_2"),
        "federated": {"by": "column", "column": "family", "divide": {"cxr": {"into": 2, "by": "patient"}}},
        # one of the two families has no validation pictures in the official split
        "hold_out": {"cpu": {"val": 0.1}, "cpu_imagenet": {"val": 0.1}, "full": {}, "gpu": {"val": 0.1}},
        "official_test": True,
        "keep_splits": True,
        "subset": {"cpu": _SMALL, "cpu_imagenet": _SMALL, "full": {}, "gpu": {}},
    },
    "cpu": {
        "image": {"size": 112},
        "vlm": _SMALL_VLM,
        "student": {"width": 16},
        "pretrain": {"rounds": 4, "batch": 16, "strong": 0.5, "optimizer": {"lr": 1.0e-3}},
        "segment": {"rounds": 8, "batch": 16, "labelled_share": 0.25, "strong": 0.25, "optimizer": {"lr": 4.0e-3}},
        "runtime": {"amp": True, "channels_last": True},
    },
    # no bfloat16: it is slower on a CPU in the encoder's depthwise convolutions
    "cpu_imagenet": {
        "image": {"size": 112},
        "vlm": _SMALL_VLM,
        "student": _IMAGENET_STUDENT,
        "pretrain": {"rounds": 4, "batch": 16, "optimizer": {"lr": 1.0e-3}},
        "segment": {"rounds": 6, "batch": 16, "strong": 0.5, "optimizer": {"lr": 1.0e-3}},
        "runtime": {"channels_last": True},
    },
    # A round is a third of a pass, so that it ends within ten minutes. Its 120 steps take 187 s of one core (1.56 each,
    # measured with others at work), its 1,429 validation pictures 35 s: 20 rounds of supervised training take 75
    # minutes. DuSSS: 2.0 s a step, and 6 rounds of 298 + 74 s before: two hours and ten minutes, in 4.2 GB and data.
    "full": {
        "image": {"size": 224},
        "vlm": _SMALL_VLM,
        "student": _IMAGENET_STUDENT,
        "pretrain": {"rounds": 6, "steps": 120, "batch": 16, "optimizer": {"lr": 1.0e-3}},
        "segment": {"rounds": 20, "steps": 120, "batch": 16, "labelled_share": 0.25, "optimizer": {"lr": 1.0e-3}},
        "runtime": {"channels_last": True},
    },
    "gpu": {
        "image": {"size": 224, "channels": 3},
        "vlm": {"image_encoder": "resnet18"},
        "student": {"width": 64},
        "pretrain": {"rounds": 30, "batch": 32, "optimizer": {"lr": 1.0e-3}},
        "segment": {"rounds": 80, "batch": 32, "optimizer": {"lr": 1.0e-3}},
        "runtime": {"amp": True, "channels_last": True},
    },
}
_MONUSEG = {
    "source": {
        "data": {"kind": "lvit", "path": "monuseg", "columns": "monuseg/hospitals.csv", "key": "slide"},
        "sites": ("christiana", "ontario", "other", "pittsburgh", "roswell_park", "us_north", "us_south"),
        "federated": {"by": "column", "column": "hospital"},
        "hold_out": {"cpu": {"test": 0.3}, "gpu": {"test": 0.3}},
        "official_test": False,
        "keep_splits": False,
        "labels_of": "all",
        "subset": {"cpu": {}, "gpu": {}},
    },
    "cpu": {
        "image": {"size": 224, "channels": 3, "mode": "tile"},
        "vlm": {"image_encoder": "mobilenetv3_small_050", "dim": 64, "decoder_width": 24, "text": _TEXT},
        "student": {"width": 12},
        "pretrain": {"rounds": 6, "batch": 4, "optimizer": {"lr": 2.0e-3}},
        "segment": {"rounds": 16, "batch": 4, "strong": 0.5, "turns": True, "optimizer": {"lr": 3.0e-3}},
        "runtime": {"channels_last": True, "eval_batch": 4},
    },
    "gpu": {
        "image": {"size": 224, "channels": 3, "mode": "tile", "tile_overlap": 0.5},
        "vlm": {"image_encoder": "resnet18"},
        "student": {"width": 64},
        "pretrain": {"rounds": 30, "batch": 16, "optimizer": {"lr": 1.0e-3}},
        "segment": {"rounds": 60, "batch": 16, "turns": True, "optimizer": {"lr": 1.0e-3}},
        "runtime": {"amp": True, "channels_last": True},
    },
}
_POLYPGEN = {
    "source": {
        "data": {"kind": "manifest", "path": "polypgen/manifest.csv"},
        "sites": ("c1", "c2", "c3", "c4", "c5", "c6"),
        "left_out": ("C1", "C2", "C3", "C4", "C5", "C6"),
        "federated": {"by": "column", "column": "centre"},
        "other_text": ("text_meta",),
        "hold_out": {"cpu": {}, "cpu_imagenet": {}},
        "official_test": False,
        "keep_splits": True,
        "labels_of": "all",
        "subset": {"cpu": {}, "cpu_imagenet": {}},
    },
    # a pass over 1,067 pictures is short, so there are more of them than QaTa-COV19 has
    "cpu": {
        "image": {"size": 112, "channels": 3},
        "vlm": _SMALL_VLM,
        "student": {"width": 16},
        "pretrain": {"rounds": 10, "batch": 16, "strong": 0.5, "optimizer": {"lr": 1.0e-3}},
        "segment": {"rounds": 20, "batch": 16, "labelled_share": 0.25, "strong": 0.25, "optimizer": {"lr": 4.0e-3}},
        "runtime": {"amp": True, "channels_last": True},
    },
    "cpu_imagenet": {
        "image": {"size": 112, "channels": 3},
        "vlm": _SMALL_VLM,
        "student": _IMAGENET_STUDENT,
        "pretrain": {"rounds": 6, "batch": 16, "strong": 0.5, "optimizer": {"lr": 1.0e-3}},
        "segment": {"rounds": 10, "batch": 16, "labelled_share": 0.25, "strong": 0.25, "optimizer": {"lr": 1.0e-3}},
        "runtime": {"channels_last": True},
    },
}
_SMALL_VILT = {"student": {"layers": 6, "patch": 16}}
_SLOW_LVIT = {"segment": {"optimizer": {"lr": 1.0e-3}}}
NETWORKS: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    ("qata", "cpu"): {"vilt": _SMALL_VILT, "lvit": _SLOW_LVIT},
    ("polypgen", "cpu"): {"vilt": _SMALL_VILT},
    ("monuseg", "cpu"): {"vilt": _SMALL_VILT},
}
"""Data set and profile -> what a network changes there, whatever method trains it: its size, and a peak learning rate
(`segment.optimizer.lr`) where the profile's is too high for it. That is chosen once, on validation pictures at 25 % of
the labels with seed 0, from 1, 1/2, 1/4 and 1/8 of the profile's. Chosen so far: of LViT on QaTa-COV19, where 1 and 1/4
alone were tried (with the sentence 70.1 and 71.4, without it 58.5 and 58.1)."""
DATASETS: dict[str, dict[str, Any]] = {"qata": _QATA, "monuseg": _MONUSEG, "polypgen": _POLYPGEN}
"""Schedules of a profile are the same for every method, so that a difference between methods is theirs."""
