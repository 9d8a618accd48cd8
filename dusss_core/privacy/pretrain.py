"""Step 1 under record-level differential privacy.

InfoNCE within a batch makes each record's loss depend on all others, and the sensitivity of the sum grows with the
batch. Two ways around it: the negatives are public, the same for every record and every site; or records meet within
small random groups, and a group is clipped as one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dusss_core.config import TrainingConfig
from dusss_core.losses.contrastive import info_nce, temperature_scale
from dusss_core.losses.similarity import Embedding, cosine
from dusss_core.pretraining.method import Seen
from dusss_core.privacy.public import public_captions, public_pictures
from dusss_core.privacy.trainer import PrivateTraining, Unit
from dusss_core.records import Split
from dusss_core.text.bank import TextBank, build_text_bank
from dusss_core.text.wording import mirror
from dusss_core.training.pretrain import Pretrainer
from dusss_core.training.trainer import Progress
from dusss_core.transfer import sent


class PrivatePretrainer(PrivateTraining, Pretrainer):
    """Trains the vision-language model; `privacy.pretrain` says how records are kept apart.

    With `public_negatives` the candidates of a record are its own other half and the public bank, encoded anew at each
    step without a gradient. With `groups` each drawn record joins one of `privacy.groups` groups, drawn for itself
    alone, and has the others of its group as negatives; `privacy.views` is not used.

    BatchNorm in the image encoder runs on the statistics that come with the round's global model, or with the public
    weights, and hands them on unchanged. Where `vlm.weights` names public weights, the encoder is frozen: the fewer
    parameters, the less noise.

    Args:
        public_text: features of `dusss_core.privacy.public.public_captions()`; None: they are encoded here.
    """

    def __init__(
        self,
        config: TrainingConfig,
        site: str,
        train: Split,
        val: Split,
        text: TextBank | None,
        *,
        records: int,
        public_text: TextBank | None = None,
        device: str | torch.device = "cpu",
        progress: Progress | None = None,
    ):
        super().__init__(config, site, train, val, text, records=records, device=device, progress=progress)
        # whether the site has masks at all must not change what another record's gradient is
        self.consistent = False
        self.grouped = config.privacy.pretrain == "groups"
        if self.grouped:
            self.expected = float(config.privacy.groups)
            return
        captions = public_captions()
        self._pictures = public_pictures(config.image).to(self.device)
        self._captions = public_text or build_text_bank(captions, config.vlm.text, None, self.device, augmented=False)
        self._same_wording = torch.tensor(
            [[caption in (sentence, mirror(sentence)) for caption in captions] for sentence in train.sentences]
        )

    def _wordings(self) -> None:
        """The site's other sentences must not decide what a record's gradient is."""
        return

    def prepare(self, model: nn.Module) -> None:
        if self.config.privacy.freeze_encoder:
            model.image.encoder.requires_grad_(False)

    def kinds(self) -> tuple[np.ndarray, np.ndarray]:
        return self.labelled, self.other

    def units(self, drawn: np.ndarray) -> list[Unit]:
        if not self.grouped:
            return super().units(drawn)
        group = self.randomness.groups(len(drawn), self.config.privacy.groups)
        return [drawn[group == number] for number in np.unique(group)]

    def set_gradients(self, batch, draw, share_done, anchor) -> dict[str, Tensor]:
        if not self.grouped:
            self._bank = self._encode_public()
        return super().set_gradients(batch, draw, share_done, anchor)

    def _contrasts(self, seen: Seen) -> dict[str, Tensor]:
        """The losses of Eq. 8, 9 and 11 of one record's views, with public negatives."""
        if self.grouped:
            return super()._contrasts(seen)
        method, settings, bank = self.config.method, self.settings, self._bank
        scale = temperature_scale(self.vlm.log_scale)
        captions = self._other_captions(seen)
        to_text = self._against(seen.image, seen.text, bank.text, scale, captions)
        to_image = self._against(seen.text, seen.image, bank.image, scale)
        parts = {"cmc": settings.weight_cmc * (to_text + to_image) / 2}
        if method.dcl:
            of_images = self._against(seen.image, seen.other_image, bank.image, scale)
            of_texts = self._against(seen.text, seen.other_text, bank.text, scale, captions)
            parts["imc"] = settings.weight_imc * (of_images + of_texts) / 2
        if method.ltg:
            # from pictures to sentences only: the other way would decode every public picture in every step
            pooled = seen.pooled()
            own = cosine(pooled, seen.grounding.text.float()).diagonal()
            scale = temperature_scale(self.vlm.log_scale_ltg)
            parts["ltg"] = settings.weight_ltg * _first_of(own, cosine(pooled, bank.grounded), scale, captions)
        return parts

    def _against(
        self, a: Embedding, b: Embedding, public: Embedding, scale: Tensor, columns: Tensor | None = None
    ) -> Tensor:
        """InfoNCE of each row of `a` with the same row of `b` among `public`."""
        return _first_of(self.method.similarity(a, b).diagonal(), self.method.similarity(a, public), scale, columns)

    def _other_captions(self, seen: Seen) -> Tensor | None:
        """M bool: captions that are not the record's own sentence. None: all are negatives, literally."""
        if self.config.method.pairs == "identity":
            return None
        return sent(self.device, ~self._same_wording[int(seen.sentence[0])])[0]

    @torch.no_grad()
    def _encode_public(self) -> _Bank:
        self.vlm.eval()
        with self.autocast():
            image = self.vlm.encode_image(self.normalise(self._pictures)).embedding
            tokens, mask = self._captions.features(torch.arange(len(public_captions())))
            text = self.vlm.encode_text(tokens.to(self.device), mask.to(self.device))
            grounded = self.vlm.grounding.text(text.sentence)
        return _Bank(image, text.embedding, grounded.float())


class _Bank(NamedTuple):
    """What the model makes of M public cases, without gradients."""

    image: Embedding
    text: Embedding
    grounded: Tensor
    """M x G: the captions in the space of the pixel features."""


def _first_of(own: Tensor, public: Tensor, scale: Tensor, columns: Tensor | None) -> Tensor:
    """InfoNCE whose positive is `own` (B) and whose negatives are the `columns` (M bool; None: all) of `public`."""
    similarity = torch.cat([own[:, None], public], dim=1)
    positives = torch.zeros_like(similarity, dtype=torch.bool)
    positives[:, 0] = True
    if columns is not None:
        columns = torch.cat([columns.new_ones(1), columns])
    return info_nce(similarity, positives, scale, "multi_positive", columns=columns)
