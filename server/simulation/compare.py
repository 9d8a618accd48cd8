"""What the federation is worth: the same study trained in other ways, on the same sites, tested on the same pictures.

local: each site alone. centralized: all sites' data in one place. Any preset of the method (mean_teacher,
supervised, clip, paper), any method of step 2 (bcp, cct, ...) or of step 1: the federation with that method. Each
lives in OUT/compare/METHOD and is resumed by itself. One that cannot run has a reason in place of figures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dusss_core import objectives, pretraining
from dusss_core.config import PAPER_BEYOND_METHOD, PRESETS
from dusss_core.errors import UserError
from dusss_core.files import read_tensors, write_json, write_tensors
from feddusss import configfile
from server.rounds.summary import figures_of_test, overall_of
from server.runs.events import Reporter
from server.simulation.local import LocalSite, load_local, pool, told_on, train_locally, why_no_student
from server.study.config import StudyConfig, study_digest
from sites.config import load_site

ALONE = ("local", "centralized")
"""Methods without a federation."""
METHODS = tuple(dict.fromkeys([*ALONE, *PRESETS, *objectives.TABLE, *pretraining.TABLE]))
"""All that `--compare` knows."""

MOST_ACROSS = 40
"""With more sites than this their own models are tested at home alone: all at all would be thousands of tests."""

RunFederation = Callable[[StudyConfig, Path, str], dict[str, Any]]
"""Runs a study's federation in a folder under a method's name and returns its summary."""


def check_methods(text: str) -> list[str]:
    """The methods in a comma-separated list.

    Raises:
        UserError: an unknown one.
    """
    methods = [name.strip() for name in text.split(",") if name.strip()]
    for name in methods:
        if name not in METHODS:
            raise UserError(f"--compare: unknown method '{name}'", f"known methods: {', '.join(METHODS)}")
    return list(dict.fromkeys(methods))


def compare(
    method: str, study: StudyConfig, out: Path, site_files: Sequence[Path], federate: RunFederation, reporter: Reporter
) -> dict[str, Any]:
    """Train `method` in `out`/compare/`method`, or take the result that is there.

    Returns:
        {"dice_mean", "dice_weighted", "dice_worst", "sites": {name: {"dice", "iou", "hd95", "n_test", ...}}}; of local
        also "across": {name of the model's site: {name of the tested site: Dice}}, of MOST_ACROSS sites at most; with
        students of the sites' own each site also has "personal_dice".
    """
    folder = Path(out) / "compare" / method
    if method not in ALONE:
        return _figures(study, federate(with_method(study, method), folder, method)["sites"])
    path = folder / "result.json"
    digest = _digest(method, study, site_files)
    done = _read(path, digest)
    if not done["finished"]:
        sites = [site for file in site_files if len((site := load_local(file, study)).splits["train"])]
        if method == "local":
            sites = _able(study, sites, reporter)
        reporter.on_study(study.study, [site.name for site in sites], study.phases(), method)
        train = _train_each if method == "local" else _train_pooled
        train(study, sites, folder, done, lambda: write_json(path, done), reporter)
        done["finished"] = True
        write_json(path, done)
    across = (
        _tested_across(study, site_files, folder, done, lambda: write_json(path, done)) if method == "local" else {}
    )
    return _figures(study, done["sites"]) | ({"across": across} if across else {})


def why_not(method: str, study: StudyConfig, site_files: Sequence[Path]) -> str | None:
    """Why `method` cannot be compared, as far as settings tell before anything is trained; None: nothing is known."""
    private = [site.site for site in map(load_site, site_files) if site.privacy.epsilon is not None]
    if private:
        return (
            f"{', '.join(private)}: with differential privacy; another method would spend the budget a second time, or "
            "read pictures without paying"
        )
    try:
        if method not in ALONE and with_method(study, method) == study:
            return "it is the study's own method, trained already"
    except UserError as error:
        return error.problem
    return None


def with_method(study: StudyConfig, name: str) -> StudyConfig:
    """The study with a preset (`with_preset`), another method of step 2, or another method of step 1 before DuSSS' own
    step 2. All else stays the study's, its network too, but for a method that has one of its own.

    Raises:
        UserError: the method does not go with what stays.
    """
    if name in PRESETS:
        return with_preset(study, name)
    values = study.model_dump()
    # what a method has no use for follows from its name
    of_another = {"teacher", "text_mask"} if name in objectives.TABLE else _SWITCHES
    method = {key: value for key, value in values["method"].items() if key not in of_another}
    if name in objectives.TABLE:
        values["method"] = {**method, "preset": "dusss", "objective": name}
        if own := _own_network(study, name):
            values["student"] |= {"network": own, "encoder": None, "weights": None}
    else:
        values["method"] = {**method, "preset": "dusss", "objective": "dusss", "pretraining": name}
    return configfile.parse(StudyConfig, values, f"study '{study.study}' as {name}")


_SWITCHES = frozenset({"teacher", "text_mask", "sss", "dcl", "ltg"})
"""Of the methods of `dusss`, in either step."""


def _own_network(study: StudyConfig, name: str) -> str | None:
    """The network that a method of step 2 is built for, where it does not work on the study's: the one that is called
    as its module is, or its only one."""
    fitting = objectives.objective_of(objectives.with_objective(study, name)).networks
    if study.student.kind in fitting:
        return None
    called, kinds = objectives.TABLE[name][0], fitting - {"encoder"}
    return called if called in kinds else next(iter(kinds)) if len(kinds) == 1 else None


def with_preset(study: StudyConfig, preset: str) -> StudyConfig:
    """The study with another preset of the method: what the preset names wins over what the study sets, and both paths
    are on unless the preset turns one off. All else stays the study's, so that the figures differ by the preset alone.
    """
    values = study.model_dump()
    both_paths: dict[str, Any] = {"objective": "dusss", "teacher": True, "text_mask": True}
    if study.method.pretraining != "dusss":
        both_paths |= {"pretraining": "dusss", "sss": True, "dcl": True, "ltg": True}
    values["method"] = {**values["method"], **both_paths, **PRESETS[preset], "preset": preset}
    for section, literal in (PAPER_BEYOND_METHOD if preset == "paper" else {}).items():
        values[section] |= literal
    return configfile.parse(StudyConfig, values, f"study '{study.study}' as {preset}")


def _able(study: StudyConfig, sites: Sequence[LocalSite], reporter: Reporter) -> list[LocalSite]:
    """The sites that can train a student by themselves. The start of one that cannot was never trained, and says
    nothing of what the site is worth alone.

    Raises:
        UserError: none can.
    """
    reasons = {site.name: reason for site in sites if (reason := why_no_student(study, site)) is not None}
    if len(reasons) == len(sites):
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise UserError(
            f"no site can train alone: {told or 'none has training pictures'}", "give sites what is missing"
        )
    for name, reason in reasons.items():
        reporter.on_message(f"local: {name} is left out: {reason}")
    return [site for site in sites if site.name not in reasons]


def _train_each(
    study: StudyConfig,
    sites: Sequence[LocalSite],
    folder: Path,
    done: dict,
    save: Callable[[], None],
    reporter: Reporter,
) -> None:
    for site in sites:
        if site.name in done["sites"]:
            continue
        student = _train(study, site, folder / f"{site.name}.safetensors", reporter)
        done["sites"][site.name] = scores_on_test(study, student, site)
        save()


def _tested_across(
    study: StudyConfig, site_files: Sequence[Path], folder: Path, done: dict, save: Callable[[], None]
) -> dict[str, dict[str, float]]:
    """Dice of every site's own model on every site's test pictures, as far as it is not known yet.

    A simulation has all of it at hand; no message asks a hospital for its own model.
    """
    across, home = done.setdefault("across", {}), done["sites"]
    if not 1 < len(home) <= MOST_ACROSS:
        return {}
    if missing := [name for name in home if name not in across]:
        from dusss_core.training import evaluate_student

        config, sites = study.training(), [load_local(file, study) for file in site_files]
        told = {site.name: told_on(config, site, site.splits["test"].sentences) for site in sites}
        for name in missing:
            student, row = read_tensors(folder / f"{name}.safetensors")[0], {}
            for site in sites:
                dice = home[name].get("dice")
                if site.name != name:
                    test, text = site.splits["test"], told[site.name]
                    dice = evaluate_student(config, student, test, site.device, text, distances=False).get("dice")
                row |= {} if dice is None else {site.name: dice}
            across[name] = row
            save()
    return across


def _train_pooled(
    study: StudyConfig,
    sites: Sequence[LocalSite],
    folder: Path,
    done: dict,
    save: Callable[[], None],
    reporter: Reporter,
) -> None:
    student = _train(study, pool("centralized", sites), folder / "student.safetensors", reporter)
    done["sites"] = {site.name: scores_on_test(study, student, site) for site in sites}
    save()


def _train(study: StudyConfig, site: LocalSite, path: Path, reporter: Reporter) -> dict:
    reporter.on_message(f"training {site.name}")
    student = train_locally(study, site, reporter).student
    write_tensors(path, student)
    return student


def scores_on_test(study: StudyConfig, student: dict, site: LocalSite) -> dict[str, Any]:
    """Figures of a student on a site's test pictures: "n_test", and those of `figures_of_test`."""
    from dusss_core.training import evaluate_student

    config = study.training()
    test = site.splits["test"]
    told = told_on(config, site, test.sentences)
    scores = evaluate_student(config, student, test, site.device, told, behind=True)
    return {"n_test": int(scores["n"]), **figures_of_test(scores)}


def _figures(study: StudyConfig, sites: dict[str, dict[str, Any]]) -> dict[str, Any]:
    of_training = ("n_labeled", "n_unlabeled", "n_records")
    kept = {
        name: {
            key: value
            for key, value in site.items()
            if key not in of_training and (not key.startswith("personal_") or key == "personal_dice")
        }
        for name, site in sites.items()
    }
    return {**overall_of(study, kept), "sites": kept}


def _read(path: Path, digest: str) -> dict[str, Any]:
    try:
        done = json.loads(path.read_text(encoding="utf-8"))
        if done["digest"] == digest:
            return done
    except (OSError, ValueError, KeyError):
        pass
    return {"digest": digest, "finished": False, "sites": {}}


def _digest(method: str, study: StudyConfig, site_files: Sequence[Path]) -> str:
    rounds = [study.pretrain.rounds, study.segment.rounds]
    return hashlib.sha256(
        json.dumps([method, study_digest(study), rounds, [f.parent.name for f in site_files]]).encode()
    ).hexdigest()
