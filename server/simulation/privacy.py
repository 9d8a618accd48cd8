"""The budgets of simulated sites: written into their own files, and the noise with which a study fits into them.

From there on a simulated site is a hospital like any other: its client reads its file, pays from its ledger before each
round, and declines what the budget does not allow. No message carries any of this. The noise is planned before the
study is sent to anyone, from public settings, and planning cannot widen a budget: the ledger adds up for itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from dusss_core.errors import UserError
from dusss_core.files import write_text
from dusss_core.manifest import Record, read_manifest, write_manifest
from dusss_core.phases import Phase
from dusss_core.privacy.accounting import Budget, epsilon, fits, least_noise, rounds_left
from dusss_core.privacy.charge import Charge
from feddusss.configfile import read_yaml
from server.study.config import StudyConfig
from server.study.simulation import SimulatedPrivacyConfig, SimulationConfig
from sites.config import load_site


def has_budget(simulation: SimulationConfig) -> bool:
    """Whether the simulated sites that train do so with differential privacy alone."""
    return simulation.privacy is not None and simulation.privacy.epsilon is not None


def give_budget(site_file: Path, privacy: SimulatedPrivacyConfig) -> None:
    """Write the budget into a simulated site's file, and leave in its manifest what the file declares.

    A site without training pictures has nothing to pay for, and gets none.
    """
    manifest = load_site(site_file).data.manifest
    records = read_manifest(manifest)
    kept = at_most_per_patient(records, privacy.records_per_patient)
    if len(kept) < len(records):
        write_manifest(manifest, kept)
    trained = sum(record.split == "train" for record in kept)
    if privacy.epsilon is None or not trained:
        return
    budget = {**privacy.model_dump(), "records": privacy.records or trained}
    write_text(site_file, yaml.safe_dump({**read_yaml(site_file), "privacy": budget}, sort_keys=False))


def at_most_per_patient(records: Sequence[Record], most: int) -> list[Record]:
    """The records without those training records of a patient that are more than `most`.

    Labelled ones stay first, then those that come first. Nobody's records decide over another patient's.
    """
    seen: dict[str, int] = {}
    dropped = set()
    for record in sorted(records, key=lambda record: not record.labelled):
        if record.split == "train" and record.patient:
            seen[record.patient] = seen.get(record.patient, 0) + 1
            if seen[record.patient] > most:
                dropped.add(record.id)
    return [record for record in records if record.id not in dropped]


def plan_noise(study: StudyConfig, privacy: SimulatedPrivacyConfig | None) -> StudyConfig:
    """The study with the least `privacy.noise_multiplier` that lets all its rounds fit into the sites' budget.

    Where the study names one, it stays: such as in the config.yaml of a run, which names what was planned.

    Raises:
        UserError: the budget ends before the study does, or no amount of noise is enough.
    """
    if privacy is None or privacy.epsilon is None or not charges_of(study):
        return study
    budget = Budget(privacy.epsilon, privacy.delta, privacy.records_per_patient)
    if "noise_multiplier" not in study.privacy.model_fields_set:
        return _with_noise(study, _least(study, budget))
    if not fits(budget, charges_of(study)):
        raise UserError(
            f"simulation.privacy: {_spending(study, budget)}, and the sites' budget is {budget.epsilon:g}; "
            f"it ends {_where_it_ends(study, budget)}",
            f"leave privacy.noise_multiplier out to have it planned ({_least(study, budget):.3f}), ask for fewer "
            f"rounds or steps, or raise simulation.privacy.epsilon{_command(study, budget)}",
        )
    return study


def describe(study: StudyConfig, privacy: SimulatedPrivacyConfig) -> str:
    """One line for whoever started the simulation: budget, and what the study will cost."""
    budget = Budget(privacy.epsilon, privacy.delta, privacy.records_per_patient)
    k = budget.records_per_patient
    unit = "a patient" if k == 1 else f"a patient with up to {k} records"
    each = f"each site that trains has a budget of epsilon {budget.epsilon:g} at delta {budget.delta:g} for {unit}"
    return f"privacy: {each}; {_spending(study, budget)}"


def check_sites(study: StudyConfig, site_files: Iterable[Path]) -> None:
    """Refuse, before the first message, a study that every private site would decline.

    Raises:
        UserError: with all reasons at once.
    """
    from dusss_core.privacy.mechanism import reasons_against

    config = study.training()
    trainers = [site for site in map(load_site, site_files) if site.limits.phases]
    private = [site.privacy.records for site in trainers if site.privacy.epsilon is not None]
    if not private:
        return
    # one site that can is enough for step 1, and the more records, the less speaks against it
    found = reasons_against(config, Phase.SEGMENT, max(private))
    if study.phases().get(Phase.PRETRAIN) and len(private) == len(trainers):
        found += reasons_against(config, Phase.PRETRAIN, max(private))
    if found:
        told = "\n".join(f"  {reason}" for reason in dict.fromkeys(found))
        raise UserError(
            f"study '{study.study}': its simulated sites train with differential privacy alone, and cannot:\n{told}",
            "set these with --set; where no site can take part in pretraining, also --set method.preset=mean_teacher, "
            "or larger hospitals",
        )


def charges_of(study: StudyConfig) -> list[Charge]:
    """What the whole study costs a site that takes part in every round, one charge for each phase that costs."""
    from dusss_core.privacy.mechanism import charge_of

    config, found = study.training(), []
    for phase, rounds in study.phases().items():
        if rounds and not (phase == Phase.PRETRAIN and config.privacy.pretrain == "off"):
            each = charge_of(config, phase)
            found.append(replace(each, steps=rounds * each.steps))
    return found


def _with_noise(study: StudyConfig, noise: float) -> StudyConfig:
    privacy = study.privacy.model_copy(update={"noise_multiplier": noise})
    return study.model_copy(update={"privacy": privacy})


def _least(study: StudyConfig, budget: Budget) -> float:
    try:
        return least_noise(budget, lambda noise: charges_of(_with_noise(study, noise)))
    except ValueError:
        raise UserError(
            f"simulation.privacy: epsilon {budget.epsilon:g} at delta {budget.delta:g}: no amount of noise is enough "
            "for the study's rounds",
            "ask for fewer rounds or steps, a smaller privacy.sample_rate, or a larger epsilon",
        ) from None


def _spending(study: StudyConfig, budget: Budget) -> str:
    charges, settings = charges_of(study), study.privacy
    cost = epsilon(charges, budget.delta, budget.records_per_patient)
    rounds = sum(charge.steps for charge in charges) // settings.steps_per_round
    return (
        f"{rounds} rounds of {settings.steps_per_round} steps at q = {settings.sample_rate:g} and "
        f"privacy.noise_multiplier {settings.noise_multiplier:g} cost {cost:.3f}"
    )


def _where_it_ends(study: StudyConfig, budget: Budget) -> str:
    steps, spent = study.privacy.steps_per_round, []
    phases = [phase for phase, rounds in study.phases().items() if rounds]
    for phase, whole in zip(phases[-len(charges_of(study)) :], charges_of(study), strict=True):
        left = rounds_left(budget, spent, replace(whole, steps=steps))
        if left < whole.steps // steps:
            return f"after round {left} of {phase}"
        spent.append(whole)
    raise AssertionError("a study that fits")


def _command(study: StudyConfig, budget: Budget) -> str:
    """The line that answers for a hospital, where all rounds cost the same."""
    charges, settings = charges_of(study), study.privacy
    if any(charge.noise_multiplier != settings.noise_multiplier for charge in charges):
        return ""
    rounds = sum(charge.steps for charge in charges) // settings.steps_per_round
    return (
        f"; python -m client privacy plan --epsilon {budget.epsilon:g} --delta {budget.delta:g} --rounds {rounds} "
        f"--steps {settings.steps_per_round} --sample-rate {settings.sample_rate:g} "
        f"--records-per-patient {budget.records_per_patient}"
    )
