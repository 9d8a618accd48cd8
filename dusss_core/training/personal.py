"""Students that are a site's own, for every method of step 2: `personal` in a study's settings.

w is the global student, v what a site has of its own, F the loss of the study's objective on the site's pictures,
eta the learning rate of the step.

Ditto (Li, Hu, Beirami and Smith, ICML 2021) has a whole student v beside w, which minimises

    F(v) + lambda / 2 |v - w|^2,    w as it came in this round

and never enters an average. APFL (Deng, Kamani and Mahdavi, 2020) deploys the mixture m = alpha v + (1 - alpha) w. At
each step, with w the site's copy, which is trained as always and averaged, and m made of both as they were before it:

    v <- v - eta grad_v F(m) = v - eta alpha grad F(m)
    alpha <- alpha - eta_alpha <v - w, grad F(m)>, kept in [0, 1]; only where alpha is learnt

FedRep (Collins, Hassani, Mokhtari and Shakkottai, ICML 2021) keeps the head h of the network at the site; the rest, b,
is averaged. In each round the site first trains h with b as it came, then b with h as it is.

Each student has an objective of its own, with its own teacher, and draws the batches that w draws. What w becomes does
not depend on v, but for FedRep, whose head is part of it. Steps are AdamW's, so eta times a gradient stands for the
step that AdamW makes of it.

Private state: `personal.student.*` is v, `personal.optimizer.*` and `personal.objective.*` go with it. Nothing of it
is ever in `shared`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dusss_core.config import PersonalConfig, TrainingConfig
from dusss_core.files import with_prefix
from dusss_core.models.weights import head_names, load_tensors, on_cpu
from dusss_core.objectives.objective import Batch
from dusss_core.phases import Phase
from dusss_core.records import Split
from dusss_core.seeds import global_seed
from dusss_core.text.bank import TextBank
from dusss_core.training.optimizer import AdamW
from dusss_core.training.segment import Segmenter
from dusss_core.training.sharing import no_own_student
from dusss_core.training.statistics import estimate_statistics, with_own_statistics
from dusss_core.training.trainer import Steps, exhausted

_OWN, _STUDENT, _ALPHA = "personal.", "student.", "alpha"


class PersonalSegmenter(Segmenter):
    """Trains the student as `Segmenter` does, and what the site has of its own: v of Ditto and APFL, or FedRep's head.

    The figures of v have the names of the student's with `personal_` before them. A site that has nothing to learn v
    from (`no_own_student`) trains the global student alone.
    """

    def __init__(self, config: TrainingConfig, *args: Any, heir_of: PersonalSegmenter | None = None, **kwargs: Any):
        super().__init__(config, *args, heir_of=heir_of, **kwargs)
        beside = config.personal.beside and no_own_student(config, self.train) is None
        kind = BESIDE[config.personal.kind] if beside else None
        self.own: Beside | None = kind and kind(self, None if heir_of is None else heir_of.own)
        in_head = head_names(self.model, config.personal.own_head)
        parts: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, parameter in self.model.named_parameters():
            parts[name in in_head].append(parameter)
        self._head, self._body = parts[True], parts[False]
        wanted = max(1, round(config.personal.head_share * self.steps_per_round)) if self._head else 0
        self._head_steps = min(wanted, self.steps_per_round - 1)
        self._held: list[nn.Parameter] = []

    def kept(self) -> Iterator[Tensor]:
        yield from super().kept()
        if self.own is not None:
            yield from self.own.kept()

    def load_shared(self, tensors: dict[str, Tensor]) -> None:
        super().load_shared(tensors)
        if self.own is not None:
            self.own.meet()

    def private(self, *, copies: bool = True) -> dict[str, Tensor]:
        own = {} if self.own is None else self.own.private(copies=copies)
        return {**super().private(copies=copies), **{f"{_OWN}{name}": value for name, value in own.items()}}

    def load_private(self, tensors: dict[str, Tensor]) -> None:
        super().load_private(tensors)
        if self.own is None:
            return
        if own := with_prefix(tensors, _OWN):
            self.own.load_private(own)
        else:  # the site had nothing to learn v from until now: v starts from the global student that comes next
            self.own = type(self.own)(self, None)

    def train_round(self, round: int) -> dict[str, float]:
        if self.own is None:
            return super().train_round(round)
        figures = super().train_round(round)
        return {**figures, **_as_own(self.own.finish())}

    def begin_round(self, round: int) -> None:
        if self.own is not None:
            self.own.begin(round)

    def batches(self, steps: int, draw: torch.Generator) -> Iterator[Batch]:
        for i, batch in enumerate(super().batches(steps, draw)):
            self._held = self._body if i < self._head_steps else self._head
            if self.own is not None:
                self.own.advance()  # before w steps: m is made of what both were
            yield batch

    def validate(self) -> dict[str, float]:
        """As `Segmenter`, and "personal_dice", "personal_iou" of the site's own student; with FedRep they are the same,
        since the student has the site's head."""
        figures = super().validate()
        own = self.own.validate() if self.own is not None else {}
        return {**figures, **_as_own(figures if self.config.personal.kind == "fedrep" else own)}

    def personal_student(self) -> dict[str, Tensor] | None:
        """What is deployed at this site, whole, after `load_shared`, under FedBN with the statistics that it followed
        in training (`at_its_best`); None before it has been trained, and where it is no student beside the global
        one."""
        if self.own is None or not self.own.step:
            return None
        followed = self.own.followed() if self.config.local_norm else {}
        return on_cpu({**self.own.student.state_dict(), **followed}, copies=True)

    def _withhold_gradients(self) -> None:
        """Also of FedRep's head while the rest is trained, and the other way round."""
        super()._withhold_gradients()
        for parameter in self._held:
            parameter.grad = None


class Beside(Segmenter):
    """A student of the site's own beside the one that `of` trains: the same pictures, an objective of its own.

    A subclass has a line in BESIDE. `student` is what is validated and deployed. What of it does not follow from
    `Segmenter.private` it hands out by `private`, v itself as `student.NAME`, and takes back by `load_private`: else v
    begins anew in the next process. Where what is deployed is not v as it is, `student_after` says how it is made.

    Where normalisation layers stay at the site (FedBN) their statistics are estimated anew before it is validated, as
    those of the global student are. Those that were followed in training are kept: the test takes the better of both.
    """

    def __init__(self, of: Segmenter, heir_of: Beside | None, prox_mu: float = 0.0):
        self.of = of
        data = {"text_logits": of.text_logits, "text": of.text, "device": of.device, "progress": of.progress}
        config = alone(of.config, prox_mu=prox_mu)
        super().__init__(config, of.site, of.train, of.val, heir_of=heir_of, **data)

    def meet(self) -> None:
        """The round's global student has arrived at `of`. The first one is where v starts from."""
        if self.step == 0:
            self.load_shared(self.of.model.state_dict())
        elif self.of.config.local_norm:  # as those of the global student
            estimate_statistics(self.of.config, self.phase, self.model, self.train, self.of.text, self.device)

    @abstractmethod
    def followed(self) -> Mapping[str, Tensor]:
        """Buffers as they were after this one's last step."""

    @abstractmethod
    def begin(self, round: int) -> None:
        """A round begins, before the global student is trained."""

    def advance(self) -> None:
        """The global student is about to make a step. Ditto's steps do not wait for its."""

    @abstractmethod
    def finish(self) -> dict[str, float]:
        """The global student's round is over; the figures of this one's."""

    # Pictures, and what their text-guided masks weigh, are of both students: on a device they lie there once.

    @property
    def text_share(self) -> float:
        return self.of.text_share

    @property
    def _images(self):
        return self.of._images

    @property
    def _masks(self):
        return self.of._masks

    @property
    def _text_logits(self):
        return self.of._text_logits


class Ditto(Beside):
    """v of Ditto. Its steps are those of training alone, with the pull of `lambda / 2 |v - w|^2` (as FedProx has it) in
    the gradient.

    At lambda 0 it is training alone, to the last bit (but for the statistics under FedBN). However large lambda is,
    AdamW moves a number by about the learning rate a step: v stays within some learning rates of w.
    """

    def __init__(self, of: Segmenter, heir_of: Ditto | None):
        super().__init__(of, heir_of, prox_mu=of.config.personal.weight)
        self._figures: dict[str, float] = {}
        self._followed: dict[str, Tensor] = {}

    def anchor(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self.of.model.parameters() if parameter.requires_grad]

    def begin(self, round: int) -> None:
        self._figures = self.train_round(round)  # all of it: w is still what came
        self._note_followed()

    def finish(self) -> dict[str, float]:
        return self._figures

    def followed(self) -> Mapping[str, Tensor]:
        return self._followed

    def private(self, *, copies: bool = True) -> dict[str, Tensor]:
        student = {f"{_STUDENT}{name}": value for name, value in self.model.state_dict().items()}
        return {**super().private(copies=copies), **on_cpu(student, copies)}

    def load_private(self, tensors: dict[str, Tensor]) -> None:
        super().load_private(tensors)
        load_tensors(self.model, with_prefix(tensors, _STUDENT))
        self._note_followed()

    def _note_followed(self) -> None:
        """Before `meet` puts estimated ones in their place."""
        self._followed = {name: buffer.clone() for name, buffer in self.model.named_buffers()}


class Mixture(Beside):
    """APFL: `student` is the mixture m, `v` the site's part of it.

    Running statistics and other buffers of v are those that m followed while it was trained, or that were estimated of
    it. What is validated and deployed mixes them as it mixes weights, so that it is the global student at alpha 0; but
    see `Beside`. With `fixed_statistics` m is trained with the mixed ones.
    """

    def __init__(self, of: Segmenter, heir_of: Mixture | None):
        super().__init__(of, heir_of)
        if heir_of is None:
            self.v = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
            trained = [self.v[name].requires_grad_() for name, p in self.model.named_parameters() if p.requires_grad]
            settings = self.settings.optimizer
            self.optimizer = AdamW(trained, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
        else:
            self.v = heir_of.v
        self.alpha = torch.tensor(of.config.personal.alpha, device=self.device)
        self._running: Steps | None = None
        self._round = 0

    def kept(self) -> Iterator[Tensor]:
        yield from super().kept()
        yield from self.v.values()

    @torch.no_grad()
    def meet(self) -> None:
        w = self.of.model.state_dict()
        if self.step == 0:
            for name, value in w.items():
                self.v[name].copy_(value)
        else:
            self._mix(w)
        super().meet()

    def followed(self) -> Mapping[str, Tensor]:
        return {name: self.v[name] for name, _ in self.model.named_buffers()}

    def begin(self, round: int) -> None:
        if self.statistics_fixed(round):  # those that m is used with
            self._mix(dict(self.of.model.named_buffers()))
        else:
            load_tensors(self.model, {name: self.v[name].detach() for name, _ in self.model.named_buffers()})
        self.objective.before_round()
        self._running, self._round = self.stepwise(round), round

    def advance(self) -> None:
        with global_seed(*self.seed_names(self._round), "personal", self.step, device=self.device):
            next(self._running)

    def finish(self) -> dict[str, float]:
        figures = exhausted(self._running)
        self._running = None
        if not self.statistics_fixed(self._round):
            self.settle_statistics(self._round, figures)
            for name, value in self.model.named_buffers():
                self.v[name].copy_(value)
        return {**figures, **({_ALPHA: self.alpha.item()} if self.of.config.personal.learn_alpha else {})}

    def set_gradients(
        self, batch: Batch, draw: torch.Generator, share_done: float, anchor: list[Tensor]
    ) -> Mapping[str, Tensor]:
        self._mix(dict(self.of.model.named_parameters()))
        loss, parts = self.losses(batch, draw, share_done)
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        self._withhold_gradients()
        slope = self._chain()
        if self.settings.optimizer.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._trained, self.settings.optimizer.clip_norm)
        personal = self.of.config.personal
        if personal.learn_alpha:
            self.alpha = (self.alpha - personal.alpha_lr * slope).clamp(0, 1)
        return {"loss": loss.detach(), **parts}

    def after_step(self, share_done: float) -> None:
        self._mix(dict(self.of.model.named_parameters()))  # which a teacher follows
        super().after_step(share_done)

    def private(self, *, copies: bool = True) -> dict[str, Tensor]:
        own = {f"{_STUDENT}{name}": value for name, value in self.v.items()} | {_ALPHA: self.alpha}
        return {**super().private(copies=copies), **on_cpu(own, copies)}

    @torch.no_grad()
    def load_private(self, tensors: dict[str, Tensor]) -> None:
        super().load_private(tensors)
        for name, value in with_prefix(tensors, _STUDENT).items():
            self.v[name].copy_(value)
        self.alpha = tensors[_ALPHA].to(self.device, copy=True)

    @torch.no_grad()
    def _mix(self, w: Mapping[str, Tensor]) -> None:
        """m of the tensors that `w` names."""
        m = self.model.state_dict()
        for name, value in w.items():
            m[name].copy_(_mixed(self.v[name], value, self.alpha))

    @torch.no_grad()
    def _chain(self) -> Tensor:
        """Give v the gradient alpha grad F(m).

        Returns:
            <v - w, grad F(m)>, the gradient with respect to alpha.
        """
        slope = torch.zeros_like(self.alpha)
        w = dict(self.of.model.named_parameters())
        for name, m in self.model.named_parameters():
            v = self.v[name]
            v.grad = None if m.grad is None else self.alpha * m.grad
            if m.grad is not None:
                slope += ((v - w[name]) * m.grad).sum()
        return slope


BESIDE: dict[str, type[Beside]] = {"ditto": Ditto, "apfl": Mixture}
"""Kind -> what trains the student of the site's own beside the global one."""


def student_after(
    config: TrainingConfig,
    private: Mapping[str, Tensor],
    student: Mapping[str, Tensor],
    train: Split,
    device: str | torch.device = "cpu",
    text: TextBank | None = None,
) -> dict[str, Tensor] | None:
    """What is deployed at a site with the private state `private`, where the global student is `student`, both whole;
    None where the site has no student of its own.

    For sites that have no validation pictures to choose by.
    """
    own = with_prefix(private, _OWN)
    v = with_prefix(own, _STUDENT)
    if not v:
        return None
    if config.personal.kind == "apfl":
        v = {name: _mixed(v[name], value, own[_ALPHA]) for name, value in student.items()}
    return with_own_statistics(config, Phase.SEGMENT, v, train, text, device)


def _mixed(v: Tensor, w: Tensor, alpha: Tensor) -> Tensor:
    """alpha v + (1 - alpha) w; of counters v's."""
    return torch.lerp(w, v, alpha) if v.is_floating_point() else v


def alone(config: TrainingConfig, **changes: Any) -> TrainingConfig:
    """The settings for a student that is trained at a site alone: nothing of it travels, so nothing is held back."""
    return config.model_copy(update={"personal": PersonalConfig(), "local_norm": False, "prox_mu": 0.0, **changes})


def _as_own(figures: Mapping[str, float]) -> dict[str, float]:
    return {f"personal_{name}": value for name, value in figures.items() if name != "n_steps"}
