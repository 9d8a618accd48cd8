"""Whether a site can train in a phase: what its pictures are, and what its own file asks of a step."""

from __future__ import annotations

from client.declined import Declined
from client.door.request import Judged
from client.work.workbench import Workbench
from dusss_core.phases import Phase
from dusss_core.sampling import labelled_per_step


def check_can_train(request: Judged, bench: Workbench) -> None:
    """Refuse a phase for which the site lacks the data.

    Raises:
        Declined: with what is missing.
    """
    from dusss_core.training import can_train

    if reason := can_train(request.training, request.phase, bench.split("train")):
        raise Declined(reason, abstains=True)
    least = request.site.limits.min_labelled_per_step
    if request.site.privacy.epsilon is None and 0 < _labelled_per_step(request, bench) < least:
        # how many there are is left out, since it tells the number of pictures
        raise Declined(
            f"fewer labelled pictures per step than this site allows ({least}, limits.min_labelled_per_step)",
            abstains=True,
        )


def _labelled_per_step(request: Judged, bench: Workbench) -> int:
    """Labelled pictures of a step, each counted once; 0 where none is trained on."""
    phase, config, train = request.phase, request.training, bench.split("train")
    if phase.reads_sentences and not config.method.grounding_supervision:
        return 0
    usable, settings = phase.usable(train), phase.settings(config)
    labelled = int((usable & train.labelled).sum())
    other = int(usable.sum()) - labelled
    if phase == Phase.SEGMENT:
        from dusss_core.objectives import objective_of

        kind = objective_of(config)
        # with fewer others than these, as where only those with a sentence teach, a step has more labelled ones
        drawn = kind.labelled_per_step(settings, labelled, 0 if kind.learns_from(config) == "none" else other)
    else:
        drawn = labelled_per_step(labelled, other, settings.batch, settings.labelled_share)
    return min(drawn, bench.data.counts["n_labelled"])
