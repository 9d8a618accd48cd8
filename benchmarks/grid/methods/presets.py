"""Methods that are switches of this project: DuSSS, its ablations, and what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.grid.cell import CONTROL_OF
from dusss_core.phases import Phase

if TYPE_CHECKING:
    from benchmarks.grid.trial import Trained, Trial

_PUBLISHED_SMALL = ("cct", "bcp", "mcnet", "mcnet_v1", "ssnet", "ucmt", "unimatch")
"""Objectives that were published with the small U-Net."""
_PRETRAINING = ("mgca", "cmitm", "asg")
"""Published methods of step 1."""
_PERSONAL = ("ditto", "fedrep", "apfl", "finetune")
"""Ways to a student of the site's own."""
_FEDERATED: dict[str, dict[str, Any]] = {
    "fedbn": {"local_norm": True},
    "fixbn": {"fixed_statistics": True},
    "fixbn_estimated": {"fixed_statistics": True, "batch_statistics": "estimated"},
    "polypgen": {
        "fixed_statistics": True,
        "batch_statistics": "estimated",
        "pretrain": {"epochs": 5},
        "segment": {"epochs": 3},
    },
    "estimated": {"batch_statistics": "estimated"},
    "fedprox": {"federation": {"strategy": "fedprox", "mu": 0.01}},
    "fedadam": {"federation": {"strategy": "fedadam", "server_lr": 0.01}},
}
"""Other ways to one model of several sites than the mean of all weights. Constants are usual ones, none was tuned."""
SIX_HOSPITALS = "fixbn_estimated"
"""The one that six real hospitals are best with at a pass a round."""
MORE_PASSES = "polypgen"
"""The same with the passes of the preset of that name."""
_OTHERS = ("mean_teacher", "mean_teacher_mse", "fixmatch", "fedsemidg", "clip", "paper", *CONTROL_OF)
"""Rows without a network of their own, but supervised training and DuSSS, which have one in each federation."""


def _on(network: str, **more: Any) -> dict[str, Any]:
    """That network in place of the profile's student."""
    return {"student": {"network": network, "encoder": None, "weights": None, **more}}


_THREE_PASSES = {"pretrain": {"epochs": 3}, "segment": {"epochs": 3}}
"""With three sites: as many steps one after another as one place with all their pictures makes."""
_SMALL = _on("small_unet")
"""The network that the method was published with; without it, the student's own."""
_WITHOUT_LABELS = {"preset": "paper", "ltg": True, "pairs": "multi_positive"}
"""Equal sentences stay positives of each other: with one sentence a picture most negatives would be false."""
_WITH_TEXT = {"early_fusion": "early_fusion", "lvit": "lvit", "vilt": "supervised_with_text"}
"""Network that is given sentences -> the objective that it is published with (vilt: none is known)."""

_TABLE_2 = {
    f"{sss:d}{dcl:d}{ltg:d}": {"sss": sss, "dcl": dcl, "ltg": ltg}
    for sss in (False, True)
    for dcl in (False, True)
    for ltg in (False, True)
}
"""The paper's eight rows: SSS, DCL and Ltg on (1) or off (0)."""


METHODS: dict[str, dict[str, Any]] = {
    "supervised": {"method": {"preset": "supervised"}},
    "supervised_small": {"method": {"preset": "supervised"}, **_SMALL},
    "mean_teacher": {"method": {"preset": "mean_teacher"}},
    "clip": {"method": {"preset": "clip"}},
    "paper": {"method": {"preset": "paper"}},
    "dusss": {"method": {"preset": "dusss"}},
    "mean_teacher_mse": {"method": {"objective": "mean_teacher_mse"}},
    "fixmatch": {"method": {"objective": "fixmatch"}},
    "fedsemidg": {"method": {"objective": "fedsemidg"}},
    # supervised training, and a student of each site's own
    **{f"supervised_{kind}": {"method": {"preset": "supervised"}, "personal": {"kind": kind}} for kind in _PERSONAL},
    # the same with the statistics that six hospitals are best with
    **{
        f"supervised_{SIX_HOSPITALS}_{kind}": {
            "method": {"preset": "supervised"},
            **_FEDERATED[SIX_HOSPITALS],
            "personal": {"kind": kind},
        }
        for kind in _PERSONAL
    },
    # supervised training, and DuSSS, in other federations
    **{
        f"{name}_{kind}": {"method": {"preset": name}, **changes}
        for name in ("supervised", "dusss")
        for kind, changes in _FEDERATED.items()
    },
    # as many steps as with all pictures in one place
    **{f"{name}_three_passes": {"method": {"preset": name}, **_THREE_PASSES} for name in ("supervised", "dusss")},
    # text-free methods: on the network of their papers, and on the student's own
    **{name: {"method": {"objective": name}, **_SMALL} for name in _PUBLISHED_SMALL},
    **{f"{name}_same": {"method": {"objective": name}} for name in _PUBLISHED_SMALL},
    # published methods of step 1 in place of DuSSS' own, then text-guided masks and step 2 as `dusss` has them
    **{name: {"method": {"pretraining": name}} for name in _PRETRAINING},
    # the same without labels in step 1, as `paper`: Eq. 11 trains the grounding decoder, which nothing else would
    **{f"{name}_paper": {"method": {**_WITHOUT_LABELS, "pretraining": name}} for name in _PRETRAINING},
    # students that are given sentences; with the sentence of every fifth training picture withheld; and the control of
    # each network, which never gets one
    **{name: {"method": {"objective": objective}, **_on(name)} for name, objective in _WITH_TEXT.items()},
    **{
        f"{name}_dropout": {"method": {"objective": objective}, **_on(name, text_dropout=0.2)}
        for name, objective in _WITH_TEXT.items()
    },
    **{f"supervised_{name}": {"method": {"preset": "supervised"}, **_on(name)} for name in _WITH_TEXT},
    "lvit_supervised": {"method": {"objective": "supervised_with_text"}, **_on("lvit")},
    "lvit_balanced": {"method": {"objective": "lvit_balanced"}, **_on("lvit")},
    # the rows of the paper's Table 2, all with the labels' supervision of the grounding decoder and its consistency
    **{f"table2_{name}": {"method": {"preset": "dusss", **switches}} for name, switches in _TABLE_2.items()},
    # the same to the letter, without both: nothing tells the decoder where a finding is
    **{f"paper_table2_{name}": {"method": {"preset": "paper", **switches}} for name, switches in _TABLE_2.items()},
    # controls: DuSSS with sentences that tell nothing (benchmarks/grid/sentences.py)
    "constant_sentence": {"method": {"preset": "dusss"}},
    "wrong_sentence": {"method": {"preset": "dusss"}},
    # The same decoder with the same start, labels, consistency and mirror image, as a teacher of pictures alone: one
    # sentence, no look at its words, and of the contrast only that all pictures be equally near to it.
    "picture_only_teacher": {
        "method": {"preset": "dusss", "sss": False, "dcl": False, "ltg": False},
        "vlm": {"cross_attention": False},
    },
}
"""Name -> what it changes of the study, key by key. table2_SDL: SSS, DCL and Ltg on (1) or off (0); table2_111 is
`dusss`, table2_000 is `clip`, paper_table2_111 is `paper`."""
# every other system and control on the student's network, or on its own if that reads sentences, in the federations of
# six hospitals
METHODS |= {
    f"{name}_{federation}": {**METHODS[name], **_FEDERATED[federation]}
    for federation in (SIX_HOSPITALS, MORE_PASSES)
    for name in (*_OTHERS, *(f"{name}_same" for name in _PUBLISHED_SMALL), *_PRETRAINING, *_WITH_TEXT)
}


def run(trial: Trial) -> Trained:
    """Train the federation with the method's switches."""
    return train(trial, METHODS[trial.cell.method])


def train(trial: Trial, changes: Mapping[str, Any]) -> Trained:
    """Train the cell's federation with `changes` of its study."""
    from benchmarks.grid.trial import Trained, models_at_sites, personal_students
    from server.runs.checkpoints import read_model
    from server.simulation.simulate import simulate

    study = trial.study(changes)
    summary = simulate(study, trial.folder, resume=True, reporter=trial.clock, site_files=trial.sites)
    checkpoints = trial.folder / "checkpoints"
    with_masks = study.method.text_mask and Phase.PRETRAIN in summary["rounds"]
    return Trained(
        study=study,
        personal=personal_students(study, trial.folder, trial.sites),
        kept=models_at_sites(study, trial.folder),
        student=read_model(checkpoints / "student.safetensors"),
        vlm=read_model(checkpoints / "vlm.safetensors") if with_masks else None,
        val=_validation(trial.folder, summary["rounds"][Phase.SEGMENT]["final"]),
        hidden_text_dice=summary["pseudo"]["text_dice_mean"],
        seconds=summary["seconds"]["total"],
    )


def _validation(folder: Path, final: int) -> dict[str, float]:
    """Validation figures of the student of round `final`."""
    from server.runs.lines import ALL_SITES
    from server.runs.runfiles import read_run

    lines = (line for line in read_run(folder).rounds if (line["phase"], line["site"]) == (Phase.SEGMENT, ALL_SITES))
    # a round's figures are those of the model before it
    return next((line.get("val", {}) for line in lines if line["round"] == final + 1), {})
