"""What a study with private sites came to, measured outside the federation.

Figures of a private site's test pictures do not leave it: nobody has paid for them. A simulation owns all the data and
plays both sides, so it can look: it takes the final student, which is public, to each site's folder. That is for
choosing settings on data that need no protection. A real study has no such figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dusss_core.files import write_json
from dusss_core.phases import Phase
from server.rounds.summary import overall_of
from server.runs.checkpoints import read_model
from server.runs.events import Reporter
from server.study.config import StudyConfig
from sites.config import SiteConfig, load_site

NOTE = (
    "outside the federation: the simulation, which owns all data, tests the final student itself. These figures are "
    "covered by no budget; a hospital's own would not leave it"
)


def add_outside_figures(
    summary: Mapping[str, Any], study: StudyConfig, folder: Path, site_files: Sequence[Path], reporter: Reporter
) -> dict[str, Any]:
    """Test the final student of the run in `folder` at each private site, tell it, and write summary.json again.

    Returns:
        The summary with "outside": {"note", "sites": {name: {"n_test", "dice", "iou", "hd95", "privacy"}}, "global"}.
    """
    private = {file: site for file in site_files if (site := load_site(file)).privacy.epsilon is not None}
    if not private:
        return dict(summary)
    student = read_model(folder / "checkpoints" / f"{Phase.SEGMENT.network}.safetensors")
    sites = {
        site.site: {**_figures(study, student, file), "privacy": _spent(site)}
        for file, site in sorted(private.items(), key=lambda pair: pair[1].site)
    }
    outside = {"note": NOTE, "sites": sites, "global": overall_of(study, sites)}
    summary = {**summary, "outside": outside}
    write_json(folder / "summary.json", summary)
    for line in _lines(outside):
        reporter.on_message(line)
    return summary


def _figures(study: StudyConfig, student: dict, site_file: Path) -> dict[str, Any]:
    from server.simulation.compare import scores_on_test
    from server.simulation.local import load_local

    return scores_on_test(study, student, load_local(site_file, study))


def _spent(site: SiteConfig) -> dict[str, Any]:
    """What the site's own ledger says."""
    from client.privacy.ledger import Ledger
    from dusss_core.privacy.accounting import epsilon

    ledger = Ledger(site.state_dir, site.privacy)
    charges = [entry.charge for entry in ledger.entries()]
    budget = ledger.budget
    return {
        "epsilon": budget.epsilon,
        "delta": budget.delta,
        "records_per_patient": budget.records_per_patient,
        "records": site.privacy.records,
        "spent": epsilon(charges, budget.delta, budget.records_per_patient),
        "charges": len(charges),
    }


def _lines(outside: Mapping[str, Any]) -> list[str]:
    lines = [outside["note"]]
    for name, site in outside["sites"].items():
        paid = site["privacy"]
        dice = "no test pictures" if site["dice"] is None else f"Dice {site['dice']:.4f} on {site['n_test']} pictures"
        lines.append(
            f"  {name}: {dice}; {paid['spent']:.3f} of epsilon {paid['epsilon']:g} spent in {paid['charges']} rounds"
        )
    figures = outside["global"]
    if figures["dice_mean"] is not None:
        lines.append(f"  mean Dice {figures['dice_mean']:.4f}, worst {figures['dice_worst']:.4f}")
    return lines
