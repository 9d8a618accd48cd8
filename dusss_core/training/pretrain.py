"""Step 1: vision-language pretraining with dual contrastive learning under uncertainty, Eq. 1 to 11."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dusss_core.augment import Geometry, strong_view, weak_view
from dusss_core.config import TrainingConfig
from dusss_core.losses.contrastive import cross_modal_loss, intra_modal_loss, same_sentence
from dusss_core.losses.segmentation import supervised_loss
from dusss_core.losses.similarity import saturation, sigma_regulariser, supervised_similarity
from dusss_core.losses.text_guided import masked_pool, text_guided_loss
from dusss_core.models import build_vlm
from dusss_core.models.text_tower import TextFeatures
from dusss_core.records import Split
from dusss_core.seeds import generator
from dusss_core.text import TextBank, build_text_bank
from dusss_core.training.evaluation import ground_split, score_logits
from dusss_core.training.sampling import two_stream_batches
from dusss_core.training.trainer import PhaseTrainer, Progress


class Pretrainer(PhaseTrainer):
    """Trains the vision-language model on a site's records with text.

    The labelled ones among them also supervise the grounding decoder, if the method says so.

    Args:
        text: features of the site's sentences; None where the text encoder is trained along.
    """

    phase = "pretrain"

    def __init__(
        self,
        config: TrainingConfig,
        site: str,
        train: Split,
        val: Split,
        text: TextBank | None,
        *,
        device: str | torch.device = "cpu",
        progress: Progress | None = None,
    ):
        with_text = train.has_text
        super().__init__(
            config,
            config.pretrain,
            site,
            build_vlm(config),
            train,
            val,
            device,
            progress,
            usable=int(with_text.sum()),
        )
        self.vlm = self.model
        self.text = (
            text
            if text is not None
            else build_text_bank(train.sentences, config.vlm.text, None, self.device, encoder=self.vlm.text_encoder)
        )
        supervised = with_text & train.labelled & config.method.grounding_supervision
        self.labelled = np.flatnonzero(supervised)
        self.other = np.flatnonzero(with_text & ~supervised)

    def batches(self, steps: int, draw: torch.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return two_stream_batches(
            self.labelled, self.other, self.settings.batch, self.config.segment.labelled_share, steps, draw
        )

    def losses(self, batch, draw, share_done) -> tuple[Tensor, dict[str, float]]:
        labelled, other = batch
        method, settings = self.config.method, self.settings
        positions = np.concatenate([labelled, other])
        sentence = torch.from_numpy(self.train.sentence[positions]).to(self.device)
        may_flip = self.text.may_flip(sentence).cpu() & settings.flip
        geometry = Geometry.draw(len(positions), draw, flip=may_flip, turns=False, device=self.device)
        picture = geometry.apply(self.pictures(positions))
        # a mirrored picture contradicts its sentence unless the sentence is mirrored too, so a mirrored sentence is
        # another sentence
        identity = sentence * 2 + geometry.flipped.long()
        view = torch.randint(1, self.config.vlm.text.views + 1, (len(positions),), generator=draw).to(self.device)

        with self.autocast():
            x = self.normalise(weak_view(picture, draw))
            image = self.vlm.encode_image(x)
            text = self._text(sentence, geometry.flipped)
            logits, pixels, grounded = self.vlm.ground(x, image, text)
            if method.dcl:
                other_image = self.vlm.encode_image(self.normalise(strong_view(picture, draw)))
                other_text = self._text(sentence, geometry.flipped, view)

        same = same_sentence(identity, identity)
        similarity = self._similarity(image.embedding, text.embedding)
        parts = {"cmc": cross_modal_loss(similarity, same, self.vlm.log_scale, method.pairs)}
        if method.dcl:
            parts["imc"] = settings.weight_imc * intra_modal_loss(
                self._similarity(image.embedding, other_image.embedding),
                self._similarity(text.embedding, other_text.embedding),
                same,
                same,
                self.vlm.log_scale,
                method.pairs,
            )
        if method.ltg:
            weights = _foreground(logits)
            pooled = masked_pool(pixels.float(), weights)
            parts["ltg"] = settings.weight_ltg * text_guided_loss(
                pooled, grounded.float(), same, self.vlm.log_scale_ltg, method.pairs
            )
        if len(labelled):
            mask = geometry.apply_mask(self.masks(positions))[: len(labelled)]
            parts["grounding"] = settings.weight_grounding * supervised_loss(logits[: len(labelled)], mask, dice=True)
        if method.sss:
            parts["sigma"] = settings.uncertainty.regulariser * sigma_regulariser(
                image.embedding.gaussian, text.embedding.gaussian
            )
        figures = {name: value.item() for name, value in parts.items()}
        return sum(parts.values()), {**figures, **self._saturation(image.embedding, text.embedding)}

    def validate(self) -> dict[str, float]:
        """ "dice" of the text-guided masks where masks exist, and the cross-modal "loss"."""
        keep = np.flatnonzero(self.val.has_text)
        if not len(keep):
            return {}
        val = self.val.select(keep)
        figures = {"loss": self._validation_loss(val)}
        masked = np.flatnonzero(val.masked)
        if len(masked):
            val = val.select(masked)
            logits = ground_split(self.config, self.vlm, val, self.text, self.device)
            figures["dice"] = score_logits(self.config, logits, val)["dice"]
        return figures

    @torch.no_grad()
    def _validation_loss(self, val: Split) -> float:
        if not isinstance(val.images, np.ndarray):
            # whole pictures of different sizes have no common batch
            return 0.0
        self.vlm.eval()
        order = torch.randperm(len(val), generator=generator(self.config.seed, "validation", self.phase)).numpy()
        total = 0.0
        for positions in np.array_split(order, max(1, len(val) // self.settings.batch)):
            x = self.normalise(torch.from_numpy(val.images[positions]).to(self.device).float() / 255)
            sentence = torch.from_numpy(val.sentence[positions]).to(self.device)
            similarity = self._similarity(self.vlm.encode_image(x).embedding, self._text(sentence).embedding)
            same = same_sentence(sentence, sentence)
            total += len(positions) * float(
                cross_modal_loss(similarity, same, self.vlm.log_scale, self.config.method.pairs)
            )
        self.vlm.train()
        return total / len(val)

    def _text(self, sentence: Tensor, mirrored: Tensor | None = None, view: Tensor | None = None) -> TextFeatures:
        tokens, mask = self.text.features(sentence, mirrored=mirrored, view=view)
        return self.vlm.encode_text(tokens.to(self.device), mask.to(self.device))

    def _similarity(self, a, b) -> Tensor:
        method = self.config.method
        return supervised_similarity(
            a, b, self.settings.uncertainty, sss=method.sss, detach_uncertainty=method.detach_uncertainty
        )[0]

    @torch.no_grad()
    def _saturation(self, a, b) -> dict[str, float]:
        if not self.config.method.sss:
            return {}
        return saturation(supervised_similarity(a, b, self.settings.uncertainty, sss=True, detach_uncertainty=True)[1])


def _foreground(logits: Tensor) -> Tensor:
    """Probability that a pixel is not background, B x 1 x H x W."""
    logits = logits.float()
    return logits.sigmoid() if logits.shape[1] == 1 else 1 - logits.softmax(dim=1)[:, :1]
