"""The summed way to answer: this site's part in secure aggregation, and what it must remember between messages.

A message of secure aggregation has a step. Four steps are small questions; the fifth, `train`, is the message that
trains, whose answer is masked here before it leaves.

    state_dir/secure_aggregation/RUN_KEY-PHASE.json     mode 0600: the sessions of the latest round of that phase
    state_dir/secure_aggregation/given.txt              a line for each round that this site voted for, in any run

What a session needs is kept on the disk, since each message may be answered by another process; the secrets in it are
dropped with its last step, when a later attempt or round begins, and are never sent. The rest stays: it is what keeps
this site from giving its part of a round twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import ConfigRecord, RecordDict
from pydantic import Field, ValidationError

from client.declined import Declined
from client.door.exit import settle
from client.door.request import Judged
from client.secure.given import Given, name_of_model
from client.secure.keys import write_private
from client.secure.peers import own_key, read_peers
from dusss_core.config import Strict
from dusss_core.errors import UserError
from dusss_core.files import digest_of_tensors, make_private, write_atomically
from feddusss import wire
from feddusss.secagg import fixedpoint
from feddusss.secagg.member import Member, MemberState, default_threshold
from feddusss.secagg.records import (
    Adverts,
    Ballot,
    Complaints,
    Deliveries,
    Occasion,
    Record,
    Refused,
    dump,
    parse,
    task_digest,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

FOLDER = "secure_aggregation"
COORDINATOR = "the coordinator"


class Sessions(Strict):
    """What this site remembers of one phase of one run."""

    round: int = 0
    sessions: list[MemberState] = Field(default_factory=list)
    models: dict[str, str] = Field(default_factory=dict)
    """Names of the models that were trained into masked updates, by attempt."""


class Part:
    """This site's part in the session that a message belongs to.

    Args:
        request: with a step.

    Raises:
        Declined: the site has given its part of a later round.
        UserError: what it remembers of the run cannot be read.
    """

    def __init__(self, request: Judged):
        self._site, self._request, self._step = request.site, request, request.step
        self._path = request.site.state_dir / FOLDER / f"{request.run_key}-{request.phase}.json"
        self._kept = _read(self._path)
        self._given = Given(self._path.parent, request.run_key)
        if request.round < self._kept.round:
            raise Declined("this site has given its part of a later round", spent=True)

    def answer(self, check: Callable[[], None], train: Callable[[], RecordDict]) -> RecordDict:
        """Take the step that the message asks for.

        Args:
            check: raises `Declined` if the site cannot train in this round.
            train: makes the answer of a round, whose tensors are masked: the only form in which they leave. Called
                only where all members were told of the same round, and at most once.

        Raises:
            Declined: the step is not to be done, with the reason; the update does not fit the fixed-point range, or
                was masked before.
        """
        if self._step.name == "train":
            if self._request.wire != "float32":
                raise Declined("masked updates do not travel rounded")
            member = self._member()
            self._check_task(member)
            return self._masked(member, train())
        if self._step.name == "keys":
            check()  # a site that joins and then cannot train counts as dropped out
        step = {"keys": self._begin, "deal": self._deal, "vote": self._vote, "reveal": self._reveal}[self._step.name]
        with _refusals():
            body = dump(step())
        return RecordDict({"secure": ConfigRecord({"body": body})})

    def about(self) -> dict[str, Any]:
        """For the audit log: the step, and who is in the sum."""
        attempt, name = self._step.attempt, self._step.name
        state = next((known for known in self._kept.sessions if known.occasion.attempt == attempt), None)
        members = state.survivors or state.members if state is not None else []
        return {"secure": "masked" if name == "train" else name, "members": members}

    # The message that trains.

    def _check_task(self, member: Member) -> None:
        """Before anything is trained: is it what all members were told, and has every member dealt its shares?"""
        request = self._request
        task = task_digest(
            training=request.training_digest,
            phase=request.phase,
            vlm=request.vlm_digest,
            vlm_round=request.vlm_round,
            weighting=self._step.weighting,
            model=request.model_sha256,
            layers=request.layers_sha256,
        )
        if task != member.state.occasion.task:
            raise Declined("the model or the settings are not those that all sites of the sum were told of")
        model = name_of_model(request.phase, digest_of_tensors(request.model or {}))
        self._kept.models[self._step.attempt] = model
        with _refusals():
            self._given.check_model(model, member.state.occasion)
            member.receive(self._parsed(Deliveries).dealings, read_peers(self._site))
        # not saved: should this process end while it trains, the message can be answered again

    def _masked(self, member: Member, answer: RecordDict) -> RecordDict:
        trained = wire.unpack(wire.array_records(answer)["arrays"])
        metrics = wire.metric_records(answer)["metrics"]
        weight = int(metrics["num-examples"]) if self._step.weighting == "examples" else 1
        vector = _encoded(trained, self._request.model, weight, len(member.state.members))
        settle(self._request)
        with _refusals():
            member.mask(vector)
        self._save()
        return RecordDict({"arrays": wire.pack(_shaped(vector, trained)), "metrics": metrics})

    # The small questions.

    def _begin(self) -> Record:
        occasion, request = self._parsed(Occasion), self._request
        expected = request.run_key, request.phase, request.round, self._step.attempt
        if (occasion.run, occasion.phase, occasion.round, occasion.attempt) != expected:
            raise Refused("the occasion is not that of the message")
        self._given.check_occasion(occasion)
        if request.round > self._kept.round:
            self._kept = Sessions(round=request.round)
        if any(state.occasion.attempt == self._step.attempt for state in self._kept.sessions):
            raise Refused("the attempt has begun already")
        # a session that nobody was told the members of can have given nothing
        earlier = [state for state in self._kept.sessions if state.session]
        member = Member.begin(occasion, self._site.site, own_key(self._site), earlier)
        self._kept.sessions = [*earlier, member.state]
        self._save()
        return member.state.advert

    def _deal(self) -> Record:
        member, peers = self._member(), read_peers(self._site)
        least = self._site.secure_aggregation.threshold or default_threshold(len(peers) + 1)
        earlier = [state for state in self._kept.sessions if state is not member.state]
        dealing = member.deal(self._parsed(Adverts).adverts, peers, least, own_key(self._site), earlier)
        self._save()
        return dealing

    def _vote(self) -> Record:
        member = self._member()
        occasion, survivors = member.state.occasion, self._parsed(Ballot).survivors
        model = self._kept.models.get(self._step.attempt)
        if model is None:
            raise Refused("this site has masked nothing in this attempt")
        self._given.check_model(model, occasion, survivors)
        vote = member.vote(survivors, own_key(self._site))
        self._given.note(model, occasion, survivors)
        self._save()
        return vote

    def _reveal(self) -> Record:
        member = self._member()
        revealed = member.reveal(self._parsed(Ballot), read_peers(self._site))
        self._save()
        return revealed

    def _member(self) -> Member:
        asked = self._step.attempt, self._request.round
        for state in self._kept.sessions:
            if (state.occasion.attempt, state.occasion.round) == asked:
                return Member(state)
        raise Declined("this site does not know the attempt that the message belongs to")

    def _parsed(self, kind: type[Record]) -> Record:
        return parse(kind, self._step.body, COORDINATOR)

    def _save(self) -> None:
        # an error here is one of the message: nothing leaves
        make_private(self._path.parent)
        content = self._kept.model_dump_json().encode()
        write_atomically(self._path, lambda temporary: write_private(temporary, content), size=len(content))


def _encoded(trained: Mapping[str, Tensor], received: Mapping[str, Tensor], weight: int, members: int) -> np.ndarray:
    """The change of all tensors, in order of name, as integers."""
    import numpy as np

    parts = []
    for name in sorted(trained):
        bits = fixedpoint.FRACTION_BITS if trained[name].is_floating_point() else 0
        change = (trained[name].double() - received[name].double()).numpy()
        try:
            parts.append(fixedpoint.encode(change, weight, members, bits))
        except fixedpoint.OutOfRange as problem:
            raise Declined(f"the update of '{name}' does not fit into the secure sum: {problem}") from None
    return np.concatenate(parts)


def _shaped(vector: np.ndarray, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The numbers under the names and in the shapes of `tensors`, as int64."""
    import numpy as np
    import torch

    numbers, shaped, start = torch.from_numpy(vector.view(np.int64)), {}, 0
    for name in sorted(tensors):
        count = tensors[name].numel()
        shaped[name] = numbers[start : start + count].reshape(tensors[name].shape)
        start += count
    return shaped


def _read(path: Path) -> Sessions:
    try:
        return Sessions.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Sessions()
    except (OSError, ValidationError) as error:
        raise UserError(
            f"{path}: could not be read ({type(error).__name__})",
            "put it back from the backup; without it this site could give its part of a round twice, so it gives none",
        ) from None


@contextmanager
def _refusals() -> Iterator[None]:
    """What the protocol refuses, the site declines."""
    try:
        yield
    except Refused as refused:
        accuses = [site for site in refused.sites if site != COORDINATOR]
        complaints = dump(Complaints(complaints=refused.complaints)) if refused.complaints else b""
        raise Declined(str(refused), spent=refused.spent, accuses=accuses, complaints=complaints) from None
