"""Whether a round has enough answers, and where it has not, what would help."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dusss_core.config import LEAST_BATCH
from dusss_core.errors import UserError
from dusss_core.phases import Phase
from server.rounds.aggregation import sites_needed
from server.rounds.parts import told_parts
from server.rounds.replies import DIVERGED, EXHAUSTED, LIMITED, Reply
from server.rounds.roster import Roster
from server.runs.runfolder import RunFolder
from server.study.config import StudyConfig

Cause = Callable[[str], tuple[str, tuple[str, str, str] | None] | None]
"""Site -> what went wrong there, and problem, remedy and code where a person can mend it; None: none is known."""


class RoundFailed(Exception):
    """Too few answers of a round could be used. The checkpoints are intact; the run can be resumed."""

    code = "FD503"


def check_enough(
    study: StudyConfig,
    run: RunFolder,
    roster: Roster,
    phase: Phase,
    round: int,
    replies: Mapping[str, Reply],
    abstaining: Mapping[str, str],
    cause: Cause = lambda site: None,
) -> None:
    """Go on if a round has the answers that it needs.

    Args:
        replies: all of the round, by site.
        abstaining: sites that cannot take part in the phase, and why.
        cause: as of `Coordinator`.

    Raises:
        UserError: it has not, and there is something to mend.
        RoundFailed: it has not, and trying again may help.
    """
    accepted = [name for name, reply in replies.items() if reply.accepted]
    if len(accepted) >= sites_needed(study.federation):
        return
    reasons = {**abstaining, **{name: reply.reason for name, reply in replies.items() if not reply.accepted}}
    # what a site says of too little memory is all there is to say, and so of a limit without a remedy of its own
    unclear = [name for name in reasons if name not in abstaining and replies[name].kind != EXHAUSTED]
    causes = {name: found for name in unclear if (found := cause(name)) and (found[1] or replies[name].kind != LIMITED)}
    reasons |= {name: text for name, (text, _) in causes.items()}
    told = "\n".join(f"  {name}: {reason}" for name, reason in sorted(reasons.items()))
    sites = [site.name for site in (*roster.training(), *roster.away())]
    able, needed = [name for name in sites if name not in abstaining], sites_needed(study.federation, len(sites))
    if not able:
        raise UserError(
            f"no site can take part in the {phase} phase:\n{told}",
            "give sites what is missing, or set method.text_mask: false for a study without text"
            if phase.reads_sentences
            else "give sites what is missing",
        )
    # under secure aggregation only sites that abstain may have answered before too few are left
    kinds = {reply.kind for reply in replies.values() if not reply.abstains}
    if kinds == {DIVERGED}:
        lr = phase.settings(study).optimizer.lr
        parts = told_parts(study.federation, round - 1, run.accepted(phase, round - 1))
        raise UserError(
            f"{phase} round {round}: the loss or the weights are not finite at every site:\n{told}"
            + (f"\n  {parts}" if parts else ""),
            f"lower {phase}.optimizer.lr (now {lr:g}) and start afresh, or look for damaged pictures at the sites "
            "with `python -m sites check`"
            + ("; if one site's part stands out, do without that site (federation.sites)" if parts else ""),
        )
    if kinds == {EXHAUSTED}:
        batch = phase.settings(study).batch
        fewer = f"--set {phase}.batch={max(LEAST_BATCH, batch // 2)} (now {batch})"
        raise UserError(
            f"{phase} round {round}: no site has the memory that a batch takes:\n{told}",
            f"go on with --resume and fewer pictures at a time: {fewer}, or runtime.eval_batch (now "
            f"{study.runtime.eval_batch}) where a site names that; or start afresh with smaller pictures "
            "(image.size) or a smaller student",
        )
    if len(able) < needed:
        raise UserError(
            f"{phase} round {round}: {len(able)} of {len(sites)} sites can take part, {needed} needed; trying "
            f"again would end the same way:\n{told}",
            "give the sites that cannot take part what is missing"
            f"{_or_fewer(study, len(able), len(sites))}; then go on with --resume",
        )
    saved = any(run.checkpoints.rounds(each) for each in Phase)
    left = "the checkpoints are intact (--resume)" if saved else "no round was saved yet: start again (--resume or not)"
    what = f"{phase} round {round}: {len(accepted)} of {len(roster.training())} sites could be used"
    mendable = [mend for _, mend in causes.values() if mend]
    if mendable and len(mendable) == len(reasons):
        _, remedy, code = mendable[0]
        raise UserError(f"{what}, {needed} needed; {left}\n{told}", remedy, code)
    refused = {reply.kind for reply in replies.values() if not reply.accepted and not reply.abstains}
    if refused == {LIMITED}:
        raise UserError(
            f"{what}, {needed} needed; the others allow less than the study asks for, and trying again would end the "
            f"same way:\n{told}",
            "start afresh with settings within these limits, or have the sites raise them (each names the key of its "
            f"own file){_or_fewer(study, len(accepted), len(sites)) if accepted else ''}; then go on with --resume",
        )
    raise RoundFailed(f"{what}, {needed} needed; {left}\n{told}")


def _or_fewer(study: StudyConfig, able: int, sites: int) -> str:
    """What lowers the number of sites that a round needs to `able` of `sites`; empty if nothing does."""
    federation = study.federation
    if sites_needed(federation.model_copy(update={"min_sites": 1, "secure_threshold": 2})) > able:  # the least
        return ""
    threshold = sites_needed(federation.model_copy(update={"min_sites": 1}), sites)
    keys = {"secure_threshold": threshold, "min_sites": federation.min_sites}
    too_many = [f"federation.{key} (now {value})" for key, value in keys.items() if value > able]
    allowed = ", which each site's secure_aggregation.threshold must allow" if threshold > able else ""
    return f", or lower {' and '.join(too_many)} to {able}{allowed}"
