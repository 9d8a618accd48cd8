"""The model that the sites hold, where what goes to them is compressed (`feddusss.compression`).

The coordinator has two models then. Its own, in float32, is what updates are added to, what checkpoints and the end of
a phase hold. The *reference* is what the sites hold and train on: the first round of a phase sends it whole, each later
one a compressed change, and the coordinator adds what it sent to the reference, as the sites do. The change is always
the difference between the two models, so that what one round could not send is in the next one's by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dusss_core.files import digest_of_tensors
from dusss_core.phases import Phase
from feddusss import wire
from feddusss.compression import Codec, compress, expand

if TYPE_CHECKING:
    from flwr.app import ArrayRecord
    from torch import Tensor


class Reference:
    """What the sites hold in one phase of one study."""

    def __init__(self, codec: Codec):
        self._codec = codec
        self.resume({})

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what the sites held after the last round that was saved; empty at the start of a phase."""
        self.tensors = dict(tensors)
        self.base = ""
        """Digest of what the sites held before; empty in the first round of a phase."""
        self.digest = digest_of_tensors(tensors) if tensors else ""
        """Digest of what they are to hold now."""
        self.change: ArrayRecord | None = None
        self._whole: ArrayRecord | None = None
        self._at: tuple[Phase, int] | None = None

    def bring_to(self, phase: Phase, round: int, model: Mapping[str, Tensor]) -> None:
        """Make what `round` sends of the coordinator's own model. Done once a round, however often sites are asked."""
        if self._at == (phase, round):
            return
        self._at, self._whole, self.change = (phase, round), None, None
        self.base = self.digest
        if self.tensors:
            parts, _ = compress(self._codec, model, self.tensors)
            self.tensors = expand(self._codec, parts, self.tensors)
            self.change = wire.pack(parts)
        else:
            self.tensors = dict(model)
        self.digest = digest_of_tensors(self.tensors)

    @property
    def whole(self) -> ArrayRecord:
        """The reference itself, for a site that does not hold the one before."""
        if self._whole is None:
            self._whole = wire.pack(self.tensors)
        return self._whole
