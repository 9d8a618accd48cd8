"""What this site allows. Read from the site's own file only; no message can widen it."""

from __future__ import annotations

from datetime import datetime, time
from functools import lru_cache, partial

from client.declined import Declined
from client.door.request import Allowed, Request
from client.state.store import SiteState
from dusss_core.config import AUTO, TEXT_NETWORKS, TrainingConfig
from dusss_core.phases import Phase
from dusss_core.quota import check_room
from sites.config import SiteConfig


def judge(site: SiteConfig, request: Request) -> Allowed:
    """Refuse what the site's own file does not allow, as far as it can be told before data are read.

    Returns:
        What can be told only later.

    Raises:
        Declined: with the limit and what was asked.
        NoRoom: what the site keeps takes as much disk as it allows.
        UserError: this release cannot build the study's networks.
    """
    check_room(site.state_dir, 0)
    check_study(site, request)
    check_secure(site, request)
    # whoever joins a session of secure aggregation is going to train in it
    trains = request.kind == "train" or (request.step is not None and request.step.name == "keys")
    if trains:
        check_training(site, request)
    if trains or request.kind == "evaluate":
        check_student(site, request.training)
    return Allowed(
        max_steps=site.limits.max_steps_per_round,
        still=partial(check_hours, site),
        fine_tuning=partial(check_training, site, request),
        # without step 1 no vision-language model is built, whatever its size
        language=partial(
            check_language if request.training.method.text_mask else check_encoder, site, request.training
        ),
    )


def check_study(site: SiteConfig, request: Request) -> None:
    """Refuse a study that this site has no part in, whatever is asked: what can be told from the settings alone.

    Raises:
        Declined: with the limit and what was asked.
    """
    limits, training = site.limits, request.training
    if limits.studies is not None and training.study not in limits.studies:
        raise Declined("this site takes no part in this study (limits.studies)")
    if limits.objectives is not None and training.method.objective not in limits.objectives:
        raise Declined(
            f"this site takes no part in studies of objective {training.method.objective} (limits.objectives)"
        )
    if training.image.size > limits.max_picture_size:
        raise Declined(
            f"pictures of {training.image.size} pixels were asked for; this site allows {limits.max_picture_size} "
            "(limits.max_picture_size)"
        )
    check_batches(site, training)
    for phase in Phase:
        rounds = phase.settings(training).rounds
        if rounds > limits.max_rounds:
            raise Declined(f"{rounds} rounds were asked for; this site allows {limits.max_rounds} (limits.max_rounds)")


def check_batches(site: SiteConfig, training: TrainingConfig) -> None:
    """Refuse more pictures at a time than the site allows: what is gathered for them takes time before any step.

    Raises:
        Declined: with the limit and what was asked.
    """
    asked = {f"{phase}.batch": phase.settings(training).batch for phase in Phase}
    if training.runtime.eval_batch != AUTO:
        asked["runtime.eval_batch"] = training.runtime.eval_batch
    for setting, batch in asked.items():
        if batch > site.limits.max_batch:
            raise Declined(f"{setting}: {batch}; this site allows {site.limits.max_batch} (limits.max_batch)")


def check_secure(site: SiteConfig, request: Request) -> None:
    """Refuse secure aggregation where the site has no peers for it, and training without it where the site wants it.

    Raises:
        Declined: with the setting.
    """
    settings = site.secure_aggregation
    if request.step is not None and settings is None:
        raise Declined("this site has no peers for secure aggregation (secure_aggregation.peers)", abstains=True)
    if request.step is None and request.kind == "train" and settings is not None and settings.required:
        raise Declined(
            "this site's updates go into secure sums alone (secure_aggregation.required), and the study asks for "
            "none (federation.secure_aggregation)",
            abstains=True,
        )


def check_student(site: SiteConfig, training: TrainingConfig) -> None:
    """Refuse a student that is larger than the site allows, before it is built.

    Raises:
        Declined: with the limit; the student reads features of a text encoder that the site does not allow.
        UserError: this release cannot build the student.
    """
    if training.student.kind in TEXT_NETWORKS:
        check_encoder(site, training)  # its features' width is read from this machine's disk, or from a hub
    _check_size(site, _parameters("student", _networks(training)))


def check_language(site: SiteConfig, training: TrainingConfig) -> None:
    """Refuse a vision-language model that is larger than the site allows, or a text encoder that it does not allow.

    To be called before either is built: a text encoder is read from this machine's disk, or fetched from a hub.

    Raises:
        Declined: with the limit.
        UserError: this release cannot build the model.
    """
    check_encoder(site, training)
    _check_size(site, _parameters("vlm", _networks(training)))


def check_encoder(site: SiteConfig, training: TrainingConfig) -> None:
    """Refuse a text encoder that the site does not allow.

    Raises:
        Declined: with the limit.
    """
    if training.vlm.text.encoder not in site.limits.text_encoders:
        raise Declined("the study names a text encoder that this site does not allow (limits.text_encoders)")


def check_training(site: SiteConfig, request: Request) -> None:
    """Refuse a training request that goes beyond the site's limits.

    Raises:
        Declined: with the limit and what was asked.
    """
    limits, phase = site.limits, request.phase
    if phase not in limits.phases:
        raise Declined(f"this site does not train in phase '{phase}' (limits.phases)", abstains=True)
    epochs = phase.settings(request.training).epochs
    if epochs > limits.max_epochs_per_round:
        raise Declined(
            f"{epochs} epochs per round were asked for; this site allows {limits.max_epochs_per_round} "
            "(limits.max_epochs_per_round)"
        )
    if request.round > limits.max_rounds:
        raise Declined(f"round {request.round}; this site allows {limits.max_rounds} (limits.max_rounds)")
    rate = phase.settings(request.training).optimizer.lr
    if rate > limits.max_learning_rate:
        raise Declined(
            f"a learning rate of {rate:g}; this site allows {limits.max_learning_rate:g} (limits.max_learning_rate)"
        )
    if phase.reads_sentences:
        check_language(site, request.training)
    if site.privacy.epsilon is not None:
        _check_private_passes(site, request)
        _check_private(site, request)
    check_hours(site)


def check_evaluations(site: SiteConfig, state: SiteState) -> None:
    """Count an evaluation that a run asks for, and refuse one too many.

    Raises:
        Declined: with the limit.
        UserError: the count could not be written.
    """
    most = site.limits.max_evaluations_per_run
    if state.evaluations() >= most:
        raise Declined(f"this site evaluates {most} models for a run (limits.max_evaluations_per_run)")
    state.count_evaluation()


def check_hours(site: SiteConfig) -> None:
    """Refuse to begin, or after any step to go on with training, outside the hours of the day that the site allows.

    Raises:
        Declined: with the hours.
    """
    hours = site.limits.hours
    if hours is not None and not _within(hours, datetime.now().time()):
        raise Declined(f"this site trains only between {hours} (limits.hours)")


def _check_private_passes(site: SiteConfig, request: Request) -> None:
    """Refuse a private round that is long: it has steps of its own, which the phase's epochs do not bound.

    Raises:
        Declined: with the limit, what was asked, and what would fit.
    """
    asked, most = request.training.privacy, site.limits.max_private_epochs_per_round
    views = 1 if request.phase == Phase.PRETRAIN and asked.pretrain == "groups" else asked.views
    # noise is drawn in a step that draws no record too, so a rate near 0 makes no step free
    passes = asked.steps_per_round * max(asked.sample_rate * views, 1 / site.privacy.records)
    if round(passes, 6) > most:
        each = f", {views} views a record," if views > 1 else ""
        raise Declined(
            f"{asked.steps_per_round} steps of sample rate {asked.sample_rate:g}{each} are {passes:g} passes over the "
            f"declared records in a private round; this site allows {most:g} (limits.max_private_epochs_per_round): "
            f"lower privacy.steps_per_round{', privacy.views' if views > 1 else ''} or privacy.sample_rate"
        )


def _check_private(site: SiteConfig, request: Request) -> None:
    """Refuse what no noise could make private: what can be told from the settings alone."""
    from dusss_core.privacy.mechanism import why_not

    reason = why_not(request.training, request.phase, site.privacy.records)
    if site.data.label_fraction < 1:
        reason = "data.label_fraction draws masks by rank, so that one picture decides over another's: set it to 1 here"
    if reason is not None:
        raise Declined(f"this site trains with differential privacy alone, and cannot here: {reason}", abstains=True)


def _check_size(site: SiteConfig, parameters: int) -> None:
    most = site.limits.max_parameters_m
    if parameters > most * 1e6:
        raise Declined(
            f"the study's network has {parameters / 1e6:.1f} million parameters; this site allows {most:g} "
            "(limits.max_parameters_m)"
        )


def _networks(training: TrainingConfig) -> str:
    """The settings that the networks' sizes follow from. The text encoder is the site's own choice: left out."""
    kept = training.model_dump(
        include={"image": True, "vlm": True, "student": True, "method": {"objective", "pretraining"}}
    )
    kept["vlm"]["text"]["tuning"] = "frozen"
    return TrainingConfig.model_validate(kept).model_dump_json()


@lru_cache(maxsize=32)
def _parameters(network: str, settings: str) -> int:
    """Parameters of the student or the vlm. Nothing is allocated: it is built on torch's meta device."""
    import torch

    from dusss_core.build import build_student, build_vlm

    build = {"student": build_student, "vlm": build_vlm}[network]
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(TrainingConfig.model_validate_json(settings)).parameters())


def _within(hours: str, now: time) -> bool:
    start, end = (time.fromisoformat(part) for part in hours.split("-"))
    return start <= now < end if start <= end else now >= start or now < end
