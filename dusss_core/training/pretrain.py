"""Step 1: trains the vision-language model. What it learns without masks is the pretraining method's to say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dusss_core.augment import Geometry, strong_view, weak_view
from dusss_core.build import build_vlm
from dusss_core.config import TrainingConfig
from dusss_core.inference import evaluating
from dusss_core.losses.contrastive import cross_modal_loss, same_sentence
from dusss_core.losses.schedules import sigmoid_rampup
from dusss_core.losses.segmentation import pseudo_label_loss, supervised_loss
from dusss_core.models.text_tower import TextFeatures
from dusss_core.phases import Phase
from dusss_core.pretraining import pretraining_of
from dusss_core.pretraining.method import Seen, Sentences, Shown
from dusss_core.records import Split
from dusss_core.sampling import two_stream_batches
from dusss_core.seeds import generator, unit_hash
from dusss_core.text.bank import TextBank, build_text_bank
from dusss_core.training.evaluation import ground_split, score_logits
from dusss_core.training.sharing import handed_on
from dusss_core.training.trainer import PhaseTrainer, Progress
from dusss_core.transfer import sent


class Pretrainer(PhaseTrainer):
    """Trains the vision-language model on a site's records with text.

    The labelled ones among them also supervise the grounding decoder, if the method says so.

    Args:
        text: features of the site's sentences; None where the text encoder is trained along.
    """

    phase = Phase.PRETRAIN

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
        heir_of: Pretrainer | None = None,
    ):
        with_text = train.has_text
        super().__init__(
            config,
            config.pretrain,
            site,
            build_vlm(config) if heir_of is None else heir_of.vlm,
            train,
            val,
            device,
            progress,
            usable=int(with_text.sum()),
            heir_of=heir_of,
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
        self.method = pretraining_of(config)(config, self.vlm)
        self.method.read(train.sentences)
        self.wordings = self._wordings()
        self.consistent = config.method.grounding_consistency and bool(len(self.labelled))
        self.handed_on = handed_on(config, self.phase, len(self.labelled))

    def batches(self, steps: int, draw: torch.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return two_stream_batches(
            self.labelled, self.other, self.settings.batch, self.settings.labelled_share, steps, draw
        )

    def losses(self, batch, draw, share_done) -> tuple[Tensor, dict[str, Tensor]]:
        seen = self._look(batch, draw, share_done)
        parts = self._contrasts(seen)
        if len(batch[0]):
            parts["grounding"] = self.settings.weight_grounding * supervised_loss(
                seen.grounding.logits[: len(batch[0])], seen.mask, dice=True
            )
        if seen.other_grounding is not None:
            parts["consistency"] = self.settings.weight_consistency * self._consistency(seen, share_done)
        parts |= self.method.regularisers(seen)
        figures = {name: value.detach() for name, value in parts.items()}
        return sum(parts.values()), {**figures, **self.method.figures(seen)}

    def _look(self, batch: tuple[np.ndarray, np.ndarray], draw: torch.Generator, share_done: float = 0.0) -> Seen:
        """Augment a batch, labelled records first, and encode it."""
        labelled, other = batch
        positions = np.concatenate([labelled, other])
        sentence = torch.from_numpy(self._sentence_of(positions))
        may_flip = self.text.may_flip(sentence) & self.settings.flip
        how = {"flip": may_flip, "turns": False, "outside": self.settings.outside}
        geometry = Geometry.draw(len(positions), draw, **how)
        picture = geometry.apply(self.pictures(positions))
        # a mirrored picture contradicts its sentence unless the sentence is mirrored too; "left" mirrored says the same
        # as "right"
        said = self.text.identity(sentence, geometry.flipped)
        (identity,) = sent(self.device, said)
        view = torch.randint(1, self.config.vlm.text.views + 1, (len(positions),), generator=draw)
        other_image = other_text = other_grounding = mask = sentences = None

        with self.autocast():
            x = self.normalise(weak_view(picture, draw))
            image = self.vlm.encode_image(x)
            tokens, real = self._tokens(sentence, geometry.flipped)
            text = self.vlm.encode_text(tokens, real)
            grounding = self.vlm.ground(x, image, text)
            own = self.method.look(Shown(x, image, text, tokens, sentence, geometry.flipped, draw, share_done))
            if self.method.other_views(self.config) or self.consistent:
                x = self.normalise(strong_view(picture, draw, self.settings.strong))
                other_image, other_text = self.vlm.encode_image(x), self._text(sentence, geometry.flipped, view)
                if self.consistent:
                    other_grounding = self.vlm.ground(x, other_image, other_text)
            if self.wordings is not None:
                sentences = self._sentences(said, draw)
        if len(labelled):
            mask = geometry.apply_mask(self.masks(positions))[: len(labelled)]
        return Seen(
            image.embedding,
            text.embedding,
            grounding,
            other_image.embedding if other_image else None,
            other_text.embedding if other_text else None,
            other_grounding,
            mask,
            identity,
            sentence,
            sentences,
            own,
        )

    def _sentence_of(self, positions: np.ndarray) -> np.ndarray:
        """A sentence of each record, B int64; of several one that is drawn anew in each step.

        The draw is a hash of the record and the step: records do not move each other's draws.
        """
        first = self.train.sentence[positions]
        if self.train.more is None:
            return first
        drawn = first.copy()
        for i, (position, choices) in enumerate(
            zip(positions, np.column_stack([first, self.train.more[positions]]), strict=True)
        ):
            choices = choices[choices >= 0]
            if len(choices) > 1:
                names = (self.config.seed, self.site, self.phase, self.step, "sentence", self.train.ids[position])
                drawn[i] = choices[int(unit_hash(*names) * len(choices))]
        return drawn

    def _wordings(self) -> _Wordings | None:
        """The site's sentences, as records have them and mirrored as they are shown; None: told from the batch's."""
        method, frozen = self.config.method, self.config.vlm.text.tuning == "frozen"
        if method.negatives == "batch" or method.pairs != "multi_positive" or not frozen:
            return None
        sentence, count = self._shares()
        flips = self.text.may_flip(sentence) & self.settings.flip
        sentence = torch.cat([sentence, sentence[flips]])
        mirrored = torch.arange(len(sentence)) >= len(flips)
        count = torch.cat([count / (1 + flips.float()), count[flips] / 2])
        # one row for each wording: "left" mirrored is what "right" is
        identity, place = self.text.identity(sentence, mirrored).unique(return_inverse=True)
        first = torch.zeros_like(identity).scatter_reduce(
            0, place, torch.arange(len(place)), "amin", include_self=False
        )
        total = torch.zeros(len(identity)).index_add(0, place, count)
        return _Wordings(sentence[first], mirrored[first], identity, total.log())

    def _sentences(self, said: Tensor, draw: torch.Generator) -> Sentences:
        """What a batch, whose wordings are `said`, is told from."""
        told = self.wordings
        if len(told.sentence) > MOST_SENTENCES:
            told = told.some(said, MOST_SENTENCES, draw)
        text = self._text(told.sentence, told.mirrored)
        return Sentences(text.embedding, *sent(self.device, told.identity, told.log_count))

    def _shares(self) -> tuple[Tensor, Tensor]:
        """The sentences that training shows, K int64, and how many records have each; a record with several has a part
        of each."""
        sentence = torch.from_numpy(self.train.all_sentences[self.train.has_text])
        if sentence.shape[1] == 1:
            return sentence.squeeze(1).unique(return_counts=True)
        there = sentence >= 0
        part = (there / there.sum(dim=1, keepdim=True))[there]
        sentence, place = sentence[there].unique(return_inverse=True)
        return sentence, torch.zeros(len(sentence)).index_add(0, place, part)

    def _contrasts(self, seen: Seen) -> dict[str, Tensor]:
        """The losses between records: within the batch here, private training has others."""
        return self.method.contrasts(seen)

    def _consistency(self, seen: Seen, share_done: float) -> Tensor:
        """What the strong view and another wording cost: against true masks, and elsewhere, as far as pseudo-labels are
        ramped up, against the mask of the weak view and the sentence."""
        n_labelled = 0 if seen.mask is None else len(seen.mask)
        other, own = seen.other_grounding.logits.float(), seen.grounding.logits.float()
        cost = other.new_zeros(())
        if n_labelled:
            cost = cost + supervised_loss(other[:n_labelled], seen.mask, dice=True)
        if n_labelled < len(other):
            target = own[n_labelled:].sigmoid() if own.shape[1] == 1 else own[n_labelled:].softmax(dim=1)
            ramp = sigmoid_rampup(share_done, self.settings.rampup)
            cost = cost + ramp * pseudo_label_loss(other[n_labelled:], target, dice=True)
        return cost

    def validate(self) -> dict[str, float]:
        """ "dice" of the text-guided masks where masks exist, and the cross-modal "loss".

        No "dice" where no text-guided mask is used: the decoder is nobody's then, and would choose the model.
        """
        keep = np.flatnonzero(self.val.has_text)
        if not len(keep):
            return {}
        val = self.val.select(keep)
        figures = {"loss": self._validation_loss(val)}
        masked = np.flatnonzero(val.masked)
        if len(masked) and self.config.method.text_mask:
            val = val.select(masked)
            logits = ground_split(self.config, self.vlm, val, self.text, self.device)
            figures["dice"] = score_logits(self.config, logits, val)["dice"]
        return figures

    @torch.inference_mode()
    def _validation_loss(self, val: Split) -> float:
        if not isinstance(val.images, np.ndarray):
            # whole pictures of different sizes have no common batch
            return 0.0
        order = torch.randperm(len(val), generator=generator(self.config.seed, "validation", self.phase)).numpy()
        total = 0.0
        with evaluating(self.vlm):
            for positions in np.array_split(order, max(1, len(val) // self.settings.batch)):
                x = self.normalise(torch.from_numpy(val.images[positions]).to(self.device).float() / 255)
                sentence = torch.from_numpy(val.sentence[positions])
                similarity = self.method.similarity(self.vlm.encode_image(x).embedding, self._text(sentence).embedding)
                same = same_sentence(sentence, sentence).to(self.device)
                total += len(positions) * float(
                    cross_modal_loss(similarity, same, self.vlm.log_scale, self.config.method.pairs)
                )
        return total / len(val)

    def _text(self, sentence: Tensor, mirrored: Tensor | None = None, view: Tensor | None = None) -> TextFeatures:
        return self.vlm.encode_text(*self._tokens(sentence, mirrored, view))

    def _tokens(
        self, sentence: Tensor, mirrored: Tensor | None = None, view: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        tokens, mask = self.text.features(sentence, mirrored=mirrored, view=view)
        return tokens.to(self.device), mask.to(self.device)


MOST_SENTENCES = 512
"""Of those of a site that a step encodes anew: memory and time do not grow with the site's reports."""


class _Wordings(NamedTuple):
    """K sentences of a site in the words that training shows them in; on the CPU, where a step's share is drawn."""

    sentence: Tensor
    """K int64, numbers at the site."""
    mirrored: Tensor
    """K bool."""
    identity: Tensor
    """K int64, as in Seen."""
    log_count: Tensor
    """K, log of the records that have them; in a draw, each of the others also stands for those that are left out."""

    def some(self, own: Tensor, most: int, draw: torch.Generator) -> _Wordings:
        """At most `most`, or those with an identity among `own` where these are more: these, and others by chance."""
        needed = torch.isin(self.identity, own)
        others = (~needed).nonzero().squeeze(1)
        taken = others[torch.randperm(len(others), generator=draw)[: max(0, most - int(needed.sum()))]]
        log_count = self.log_count.clone()
        log_count[taken] += math.log(len(others) / max(1, len(taken)))
        place = torch.cat([needed.nonzero().squeeze(1), taken])
        return _Wordings(self.sentence[place], self.mirrored[place], self.identity[place], log_count[place])
