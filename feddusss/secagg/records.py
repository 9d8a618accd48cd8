"""What travels between sites by way of the coordinator, parsed strictly, and the exact bytes that are signed.

All of it is JSON with keys in order, so that what is signed and what is hashed is the same everywhere. Byte strings are
lower-case hex.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from dusss_core.config import Strict
from dusss_core.phases import Phase

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

PROTOCOL = "feddusss secure aggregation 2"
MOST_BYTES = 8 * 2**20
"""Of one record as it travels: enough for some hundred sites."""

Point = Annotated[str, Field(pattern=r"^0[23][0-9a-f]{64}$")]
"""Of the curve P-256, compressed."""
PublicKey = Annotated[str, Field(pattern=r"^(0[23])?[0-9a-f]{64}$")]
"""A point; without the first two digits a key of the protocol's first version, which a site may remember."""
Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Signature = Annotated[str, Field(pattern=r"^([0-9a-f]{2}){8,160}$")]
Record = TypeVar("Record", bound=Strict)


class Refused(Exception):
    """A step of the protocol is not done. The text is one sentence that holds no secret.

    Args:
        site: the site whose doing it is, where that is known.
        sites: where it is the doing of several.
        complaints: proofs of that, for whom it can be proved.
        spent: this site's part of the round was given already.
    """

    def __init__(
        self,
        reason: str,
        *,
        site: str | None = None,
        sites: Iterable[str] = (),
        complaints: Iterable[Complaint] = (),
        spent: bool = False,
    ):
        super().__init__(reason)
        self.complaints = list(complaints)
        self.sites = tuple(sites) or (() if site is None else (site,))
        self.spent = spent

    @property
    def site(self) -> str | None:
        """The first of `sites`."""
        return self.sites[0] if self.sites else None


class Occasion(Strict):
    """What one attempt at a sum is for. It is in all that is signed and in every key that is derived."""

    run: str = Field(pattern=r"^[0-9a-f]{16,64}$")
    phase: Phase
    round: int = Field(ge=1)
    attempt: str = Field(pattern=r"^[0-9a-f]{32}$")
    """Drawn by the coordinator: never the same twice."""
    threshold: int = Field(ge=2)
    """t: the fewest sites whose sum may be unmasked, and the fewest shares that give a secret."""
    task: Hex32
    """SHA-256 of the model and the settings that all members train: a coordinator that sent the others a model that
    does not learn would see one site's update as the sum (Pasquini et al., CCS 2022)."""


class Advert(Strict):
    """A site's fresh public keys for one occasion, signed with its long-lived key."""

    occasion: Occasion
    site: SiteName
    mask_key: PublicKey
    """For masks between pairs of sites."""
    share_key: PublicKey
    """For sealing of shares."""
    abandons: list[Hex32] = Field(default_factory=list, max_length=1000)
    """Earlier sessions of the same round in which this site has voted for no set of survivors, and now never will."""
    signature: str = Field("", pattern=r"^([0-9a-f]{2}){0,160}$")

    def signed_bytes(self) -> bytes:
        return _statement("keys", self.model_dump(exclude={"signature"}))


class Dealing(Strict):
    """The shares of a site's two secrets, each sealed for its holder, and the points that they fit."""

    site: SiteName
    sealed: dict[SiteName, Annotated[str, Field(pattern=r"^([0-9a-f]{2}){92}$")]]
    """By holder, without the site itself: nonce, share of the seed and share of the mask key, tag."""
    of_seed: list[Point] = Field(max_length=1000)
    """As many as the threshold; the first is that of the seed (`sharing`)."""
    of_mask_key: list[Point] = Field(max_length=1000)
    """The same; the first is the site's public mask key."""
    signature: str = Field("", pattern=r"^([0-9a-f]{2}){0,160}$")
    """By the site's long-lived key: nobody else can have a holder complain of it."""

    def signed_bytes(self, session: str) -> bytes:
        return _statement("shares", {"session": session, **self.model_dump(exclude={"signature"})})


class Complaint(Strict):
    """A holder's proof that a dealer sealed wrong shares for it (`complaints`)."""

    owner: SiteName
    agreed: Point
    challenge: Hex32
    response: Hex32


class Complaints(Strict):
    """All of one holder's in a session."""

    complaints: list[Complaint] = Field(max_length=1000)


class Vote(Strict):
    """A site's word that the sum is to be that of `survivors`. It gives it once per session."""

    site: SiteName
    signature: Signature


class Ballot(Strict):
    """Survivors, and the votes for them."""

    survivors: list[SiteName]
    votes: list[Vote] = Field(default_factory=list)


class Revealed(Strict):
    """For each member one share: of the seed of a survivor, or of the mask key of a site that dropped out."""

    site: SiteName
    shares: dict[SiteName, Hex32]


class Adverts(Strict):
    """The keys of all members of a session."""

    adverts: list[Advert]


class Deliveries(Strict):
    """What all other members dealt: to every site, so that all see the same of who dealt nothing of use."""

    dealings: list[Dealing]


def session_digest(occasion: Occasion, adverts: Iterable[Advert]) -> str:
    """Names a session: the occasion, the members, their keys. Sites that were told of different ones share nothing."""
    members = [advert.model_dump(exclude={"occasion", "signature"}) for advert in _sorted(adverts)]
    return hashlib.sha256(_statement("session", {"occasion": occasion.model_dump(), "members": members})).hexdigest()


def task_digest(
    *, training: str, phase: str, vlm: str, vlm_round: int, weighting: str, model: str, layers: str = ""
) -> str:
    """What a round trains, for `Occasion.task`.

    Args:
        training: SHA-256 of the settings' text.
        vlm: SHA-256 of the final vision-language model, or empty.
        model: SHA-256 of the bytes of the incoming model, as they travel.
        layers: of those of what stays at the sites as the study starts from it; empty: the message brings none.
    """
    values = {"training": training, "phase": phase, "vlm": vlm, "vlm_round": vlm_round, "weighting": weighting}
    brought = {"layers": layers} if layers else {}
    return hashlib.sha256(_statement("task", {**values, "model": model, **brought})).hexdigest()


def vote_bytes(session: str, survivors: Iterable[str]) -> bytes:
    """What a vote signs."""
    return _statement("vote", {"session": session, "survivors": sorted(survivors)})


def dump(record: Strict) -> bytes:
    """A record as it travels."""
    return _canonical(record.model_dump())


def parse(kind: type[Record], content: Any, whose: str) -> Record:
    """The record in `content`.

    Raises:
        Refused: it is none, or too long; `whose` names the sender.
    """
    if not isinstance(content, bytes) or len(content) > MOST_BYTES:
        raise Refused(f"{whose} sent no record of secure aggregation, or one that is too long", site=whose)
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        where = ".".join(str(part)[:64] for part in error.errors(include_input=False)[0]["loc"])
        raise Refused(f"{whose} sent a record that is not as it should be ('{where}')", site=whose) from None


def sign(key: EllipticCurvePrivateKey, content: bytes) -> str:
    """ECDSA with SHA-384 under a site's own P-384 key."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    return key.sign(content, ec.ECDSA(hashes.SHA384())).hex()


def is_signed(key: EllipticCurvePublicKey, signature: str, content: bytes) -> bool:
    """Whether `signature` is that of `content` under `key`."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key.verify(bytes.fromhex(signature), content, ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, ValueError):
        return False
    return True


def _sorted(adverts: Iterable[Advert]) -> list[Advert]:
    return sorted(adverts, key=lambda advert: advert.site)


def _statement(kind: str, values: dict[str, Any]) -> bytes:
    # the first lines say what is signed: the same key also lets the site in at the SuperLink
    return f"{PROTOCOL}\n{kind}\n".encode() + _canonical(values)


def _canonical(values: dict[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
