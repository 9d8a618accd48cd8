"""What this site has given its part of: `state_dir/secure_aggregation/given.txt`, which no run ends.

Sums are what the coordinator may know. Two sums of the same model's updates over different hospitals, or with different
weights, can be subtracted, and what is left may be one hospital's update. Settings that change nothing in training
(`patience`), or little, do not help: so a model that was trained into a sum in a phase is trained into no other sum,
whatever the settings. Within a run one more sum may be had of a model, in a later round, where the sum of an earlier
one was lost: of the same settings and the same hospitals, which tells of none of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from dusss_core.files import write_text
from dusss_core.phases import Phase
from feddusss.secagg.records import Occasion, Refused

FILE = "given.txt"
_ANYBODY = "-"
"""In place of survivors that are not known."""


class Given:
    """What was given, and to which run.

    Args:
        folder: of secure aggregation, in the site's private folder.
        run: the run that asks.
    """

    def __init__(self, folder: Path, run: str):
        self._path, self._run = folder / FILE, run

    def check_occasion(self, occasion: Occasion) -> None:
        """Before keys are made: refuse a round that was given to another run, as far as it can be told without a model.

        Raises:
            Refused: it was.
        """
        self._check(_name_of(occasion), occasion.task)

    def check_model(self, model: str, occasion: Occasion, survivors: Iterable[str] | None = None) -> None:
        """Refuse a model of which a sum was given that one over these survivors could be compared with.

        Args:
            model: as `name_of_model`.
            survivors: whose sum is asked for; None: not known yet.

        Raises:
            Refused: there is such a sum.
        """
        self._check(model, occasion.task, _ANYBODY if survivors is None else _digest(survivors))

    def note(self, model: str, occasion: Occasion, survivors: Iterable[str]) -> None:
        """Remember what is about to be given, before it is."""
        lines = self._lines()
        for name, whose in ((_name_of(occasion), _ANYBODY), (model, _digest(survivors))):
            lines.setdefault(name, [self._run, occasion.task, whose])
        write_text(self._path, "".join(f"{name} {' '.join(rest)}\n" for name, rest in lines.items()))

    def _check(self, name: str, task: str, survivors: str = _ANYBODY) -> None:
        known = self._lines().get(name)
        if known is None:
            return
        # a line of an older release has the run alone
        run, before, whose = (*known, task, _ANYBODY)[:3]
        if run != self._run:
            raise Refused(
                "this site gave its part of a sum of this very model in another run, and two sums over different sites "
                "could be subtracted: change the study's seed"
            )
        if before != task or (_ANYBODY not in (whose, survivors) and whose != survivors):
            raise Refused(
                "this site gave its part of a sum of this very model in an earlier round, with other settings or other "
                "sites, and the two could be subtracted: ask the same sites as then"
            )

    def _lines(self) -> dict[str, list[str]]:
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return {}
        return {name: rest for name, *rest in map(str.split, lines) if rest}


def name_of_model(phase: Phase, digest: str) -> str:
    """Names what a part of a sum is made from, by phase and model alone: all else can be changed a little.

    Args:
        digest: of the incoming model's tensors, whatever the form that they travelled in.
    """
    return hashlib.sha256(f"{phase} {digest}".encode()).hexdigest()


def _name_of(occasion: Occasion) -> str:
    return hashlib.sha256(f"{occasion.task} {occasion.round}".encode()).hexdigest()


def _digest(survivors: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(sorted(survivors)).encode()).hexdigest()
