"""Who is there, with how many pictures, and which vision-language model it holds."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ConfigRecord, RecordDict

from client.door.request import Judged
from client.work.workbench import Workbench
from feddusss import __version__, wire


def introduction(request: Judged, role: str, counts: Mapping[str, int]) -> RecordDict:
    """The answer to a query.

    Args:
        role: train or evaluate.
        counts: pictures, as the coordinator may be told of them.
    """
    texts = {"site": request.site.site, "release": __version__, "role": role, "vlm": request.state.vlm_digest()}
    return RecordDict({"config": ConfigRecord(texts), "metrics": wire.figures(counts)})


def plain(request: Judged, bench: Workbench) -> tuple[str, dict[str, int]]:
    """Role and true counts, as a site without differential privacy tells them."""
    counts = bench.data.counts
    return "train" if counts["n_labelled"] + counts["n_unlabelled"] else "evaluate", counts
