"""What a round's answers come to: means of their figures over the sites, traffic, and the lines of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dusss_core.phases import Phase
from server.rounds.replies import Reply
from server.rounds.roster import Site
from server.rounds.selection import weighted_mean
from server.rounds.shares import capped
from server.runs.runfolder import nested


def validation_of(
    accepted: Mapping[str, Reply], sites: Mapping[str, Site]
) -> dict[str, tuple[float, dict[str, float]]]:
    """By site, what its validation weighs, and its figures (`Selection.observe`)."""
    return {
        name: (sites[name].weight(sites[name].counts.get("n_val", 0)), reply.metrics)
        for name, reply in accepted.items()
    }


def means_of(accepted: Mapping[str, Reply], sites: Mapping[str, Site], max_share: float | None) -> dict[str, float]:
    """Means of the sites' figures, weighted by validation pictures (val.*) or training pictures (the rest). A site
    weighs no more than its declared size, and no more than the largest share."""

    def weight(site: str, name: str) -> float:
        known, examples = sites[site], accepted[site].metrics.get("num-examples", 1.0)
        return known.weight(known.counts.get("n_val", 0) if name.startswith("val.") else examples)

    means = {}
    for name in sorted({name for reply in accepted.values() for name in reply.metrics if "." in name}):
        told = {site: reply.metrics[name] for site, reply in accepted.items() if name in reply.metrics}
        shares = capped([weight(site, name) for site in told], max_share)
        mean = weighted_mean(zip(shares, told.values(), strict=True))
        if mean is not None:
            means[name] = mean
    return means


def traffic(replies: Mapping[str, Reply], down: Mapping[str, int]) -> dict[str, float]:
    """Over all sites that were asked, from and to them."""
    return {
        "bytes_up": float(sum(reply.bytes_up for reply in replies.values())),
        "bytes_down": float(sum(down.values())),
    }


def lines_of(phase: Phase, round: int, replies: Mapping[str, Reply], down: Mapping[str, int]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of one round."""
    lines = []
    for site, reply in replies.items():
        line = {"phase": phase, "round": round, "site": site, "accepted": reply.accepted, **nested(reply.metrics)}
        if not reply.accepted:
            line["reason"] = reply.reason
        lines.append({**line, "bytes_up": reply.bytes_up, "bytes_down": down.get(site, 0)})
    return lines
