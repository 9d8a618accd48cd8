"""The loop that both phases share: schedule, optimiser, proximal term, private state."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dusss_core.config import PhaseConfig, TrainingConfig
from dusss_core.errors import NotFinite
from dusss_core.files import with_prefix
from dusss_core.losses.schedules import cosine_lr
from dusss_core.models.batch_norm import fix_statistics
from dusss_core.models.weights import load_tensors, local_tensors, on_cpu, shared_tensors
from dusss_core.phases import Phase
from dusss_core.records import Split
from dusss_core.runtime import runtime_of, tune
from dusss_core.sampling import steps_per_round
from dusss_core.seeds import generator, global_seed
from dusss_core.text.bank import TextBank
from dusss_core.training.optimizer import AdamW
from dusss_core.training.resident import Resident
from dusss_core.training.sharing import own_head
from dusss_core.training.statistics import estimate_statistics
from dusss_core.transfer import Figures

Progress = Callable[[int, int, float], None]
Steps = Generator[None, None, dict[str, float]]
"""A round in the making: goes on by a step each time; returns the round's figures."""


class PhaseTrainer(ABC):
    """One site's training in one phase. Subclasses say what a batch is and what its loss is.

    A round is a function of (shared, private, seed, site, phase, round): on the CPU it repeats exactly, on CUDA up to
    the order in which kernels add.

    A step waits for its device nowhere: what it reports is read when the next step has been asked for.

    A trainer can be the heir of another site's (`heir_of`), with the same settings on the same device: then it has that
    one's network, optimiser and teacher, and not a number of its own until `load_private` and `load_shared` have given
    it all. The other one must not be used any more.
    """

    phase: Phase
    handed_on: tuple[str, ...] = ()
    """Prefixes of the parameters that this site does not train; see `dusss_core.training.sharing.handed_on`."""
    text: TextBank | None = None
    """Features of the site's sentences, for pretraining."""

    def __init__(
        self,
        config: TrainingConfig,
        settings: PhaseConfig,
        site: str,
        model: nn.Module,
        train: Split,
        val: Split,
        device: str | torch.device,
        progress: Progress | None,
        usable: int,
        heir_of: PhaseTrainer | None = None,
    ):
        self.config = config
        self.settings = settings
        self.site = site
        self.device = torch.device(device)
        tune(config, self.device)
        self.runtime = runtime_of(config, self.phase, self.device)
        self.train = train
        self.val = val
        self.progress = progress
        if heir_of is None:
            self.prepare(model)
            self.model = model.to(self.device)
            if self.runtime.channels_last:
                self.model = self.model.to(memory_format=torch.channels_last)
            self.optimizer = AdamW(
                [p for p in self.model.parameters() if p.requires_grad],
                lr=settings.optimizer.lr,
                weight_decay=settings.optimizer.weight_decay,
                fused=True,
            )
        else:
            self.model, self.optimizer = model, heir_of.optimizer
        self.step = 0
        self.steps_per_round = steps_per_round(settings, usable)

    # What a subclass provides.

    def prepare(self, model: nn.Module) -> None:  # noqa: B027 (most have nothing to do)
        """Called once, before the optimiser is built: what is frozen here is not trained."""

    @abstractmethod
    def batches(self, steps: int, draw: torch.Generator) -> Iterator[Any]:
        """`steps` batches, drawn with `draw`."""

    @abstractmethod
    def losses(self, batch: Any, draw: torch.Generator, share_done: float) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of one batch, and figures to report, 0-dimensional and float32; `share_done` of the whole phase lies
        behind, in [0, 1]."""

    def pace(self, share_done: float) -> float:
        """Factor on the learning rate, at most 1. At 0 nothing is trained: what came is handed on, bit for bit."""
        return 1.0

    def after_step(self, share_done: float) -> None:  # noqa: B027 (most phases have nothing to do)
        """Called after each optimiser step, before `step` counts it; `share_done` is that of its `losses`."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Figures of the loaded global model on the validation split; empty if there is none."""

    # What the federation uses.

    def load_shared(self, tensors: dict[str, Tensor]) -> None:
        """Take the round's global model; normalisation layers under FedBN stay, but for statistics that fit it."""
        load_tensors(self.model, tensors)
        if self.config.local_norm:
            estimate_statistics(self.config, self.phase, self.model, self.train, self.text, self.device)

    def load_start(self, layers: dict[str, Tensor]) -> None:
        """Take what stays at the site as the study starts from it (`Start.layers`), before the first `load_shared` of a
        site that has no private state.

        Raises:
            ValueError: other tensors than those that stay here.
        """
        own = local_tensors(self.model, self.config.local_norm, own_head(self.config, self.phase), copies=False)
        if {name: value.shape for name, value in layers.items()} != {name: value.shape for name, value in own.items()}:
            raise ValueError("the first layers are not those that stay at the site")
        load_tensors(self.model, layers)

    def shared(self, *, copies: bool = True) -> dict[str, Tensor]:
        """What travels to the coordinator, on the CPU.

        Args:
            copies: False: where the model lies on the CPU, its own tensors, which the next step changes.
        """
        return shared_tensors(self.model, self.config.local_norm, own_head(self.config, self.phase), copies=copies)

    def shapes(self) -> dict[str, torch.Size]:
        """Names and shapes of what travels."""
        return {name: tensor.shape for name, tensor in self.shared(copies=False).items()}

    def private(self, *, copies: bool = True) -> dict[str, Tensor]:
        """What stays at the site: optimiser moments, step counter, local layers (FedBN, FedRep); `copies` as
        `shared`."""
        moments = {
            f"optimizer.{index}.{name}": torch.as_tensor(value)
            for index, of_one in self.optimizer.state_dict()["state"].items()
            for name, value in of_one.items()
        }
        local = local_tensors(self.model, self.config.local_norm, own_head(self.config, self.phase), copies=copies)
        return {
            "step": torch.tensor(self.step),
            **on_cpu(moments, copies),
            **{f"local.{name}": value for name, value in local.items()},
        }

    def kept(self) -> Iterator[Tensor]:
        """All that takes memory as long as the trainer lives, but for pictures."""
        yield from self.model.state_dict().values()
        for moments in self.optimizer.state.values():
            yield from (value for value in moments.values() if isinstance(value, Tensor))

    def load_private(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `private` gave."""
        self.step = int(tensors["step"])
        moments: dict[int, dict[str, Tensor]] = defaultdict(dict)
        trained = self._trained
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                parameter = trained[int(index)]
                there = self.optimizer.state.get(parameter, {}).get(key)
                # on the memory of the moments that are there, since fresh memory costs more than the numbers
                fits = isinstance(there, Tensor) and (there.shape, there.dtype) == (value.shape, value.dtype)
                moments[int(index)][key] = there.copy_(value) if fits else _laid_out_as(parameter, value)
        state = self.optimizer.state_dict()
        state["state"] = dict(moments)
        self.optimizer.load_state_dict(state)
        load_tensors(self.model, with_prefix(tensors, "local."))

    def train_round(self, round: int) -> dict[str, float]:
        """Train for one round.

        Args:
            round: counts from 1.

        Returns:
            Means over the round's steps: "loss" and its parts; and "n_steps". Steps at pace 0 have no loss.

        Raises:
            NotFinite: the loss is not finite. The step has been made with it by then: `load_private` and `load_shared`
                bring back a state that is whole.
        """
        # dropout, of a text encoder or of a network, draws from torch's global generator
        with global_seed(*self.seed_names(round), "layers", device=self.device):
            figures = exhausted(self.stepwise(round))
        self.settle_statistics(round, figures)
        return figures

    def settle_statistics(self, round: int, figures: Mapping[str, float]) -> None:
        """After a round's last step: estimate the statistics of shared normalisation layers, where asked to."""
        shared = self.config.batch_statistics == "estimated" and not self.config.local_norm
        trained = "loss" in figures  # where nothing was trained, what came is handed on
        if shared and trained and not self.statistics_fixed(round):
            estimate_statistics(self.config, self.phase, self.model, self.train, self.text, self.device)

    def seed_names(self, round: int) -> tuple[object, ...]:
        """What the randomness of a round is a function of."""
        return self.config.seed, self.site, self.phase, round

    def statistics_fixed(self, round: int) -> bool:
        """Whether a round is trained with the batch statistics that came (FixBN, Zhong, Chen and Chao 2023): those of
        the second half of a phase's rounds, so never those of a single one."""
        return self.config.fixed_statistics and 2 * (round - 1) >= self.settings.rounds

    def stepwise(self, round: int) -> Steps:
        """`train_round`, stopping after each step. Layers that draw are the caller's to seed."""
        draw = generator(*self.seed_names(round))
        anchor = self.anchor() if self.config.prox_mu else []
        totals: dict[str, float] = defaultdict(float)
        steps = self.steps_per_round
        all_steps = max(1, self.settings.rounds * steps)
        made = 0
        unread: deque[_Step] = deque()
        self.model.train()
        if self.statistics_fixed(round):
            fix_statistics(self.model)
        for i, batch in enumerate(self.batches(steps, draw)):
            position = (round - 1) * steps + i
            share_done = position / all_steps
            pace = self.pace(share_done)
            if not pace:
                self.after_step(share_done)
                self.step += 1
                yield
                continue
            for group in self.optimizer.param_groups:
                group["lr"] = pace * cosine_lr(position, all_steps, self.settings.optimizer)
            figures = self.set_gradients(batch, draw, share_done, anchor)
            self.optimizer.step()
            self.after_step(share_done)
            self.step += 1
            made += 1
            unread.append(_Step(round, i + 1, Figures(figures)))
            # on a device the step before is read once this one waits there: it always has work
            while len(unread) > (self.device.type != "cpu"):
                self._note(unread.popleft(), totals)
            yield
        for step in unread:
            self._note(step, totals)
        return {**{name: value / made for name, value in totals.items()}, "n_steps": float(steps)}

    def anchor(self) -> list[Tensor]:
        """What FedProx holds the trained parameters near: those of the round's global model."""
        return [p.detach().clone() for p in self._trained]

    def set_gradients(
        self, batch: Any, draw: torch.Generator, share_done: float, anchor: list[Tensor]
    ) -> Mapping[str, Tensor]:
        """Give every trained parameter the gradient that the optimiser will use.

        Args:
            anchor: the trained parameters of the round's global model, for FedProx; empty without it.

        Returns:
            Figures to report: "loss" and its parts, as `losses` gives them.
        """
        loss, parts = self.losses(batch, draw, share_done)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._withhold_gradients()
        self._pull_towards(anchor)
        if self.settings.optimizer.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._trained, self.settings.optimizer.clip_norm)
        return {"loss": loss.detach(), **parts}

    # Shared by the subclasses.

    def pictures(self, positions: np.ndarray) -> Tensor:
        """B x C x H x W in [0, 1], not yet normalised."""
        return self._images.take(positions).float() / 255

    def masks(self, positions: np.ndarray) -> Tensor:
        """B x H x W class indices."""
        return self._masks.take(positions)

    def normalise(self, picture: Tensor) -> Tensor:
        """From [0, 1] to the networks' input."""
        x = (picture - self.config.image.mean) / self.config.image.std
        return x.to(memory_format=torch.channels_last) if self.runtime.channels_last else x

    def autocast(self) -> torch.autocast:
        """bfloat16 where the study asks for it."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.runtime.amp)

    @cached_property
    def _images(self) -> Resident:
        return Resident(self.train.images, self.device)

    @cached_property
    def _masks(self) -> Resident:
        return Resident(self.train.masks, self.device)

    @cached_property
    def _trained(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @cached_property
    def _withheld(self) -> list[nn.Parameter]:
        return [parameter for name, parameter in self.model.named_parameters() if name.startswith(self.handed_on)]

    def _withhold_gradients(self) -> None:
        """Of what the site hands on as it came: no gradient, so no step, no decay."""
        for parameter in self._withheld:
            parameter.grad = None

    @torch.no_grad()
    def _pull_towards(self, anchor: list[Tensor]) -> None:
        """FedProx: the gradient of mu / 2 |theta - theta_global|^2."""
        if not anchor:
            return
        pulled = [(p.grad, p, start) for p, start in zip(self._trained, anchor, strict=True) if p.grad is not None]
        gradients, parameters, starts = (list(column) for column in zip(*pulled, strict=True))
        torch._foreach_add_(gradients, torch._foreach_sub(parameters, starts), alpha=self.config.prox_mu)

    def _note(self, step: _Step, totals: dict[str, float]) -> None:
        """Read the figures of a step, add them to the round's, and tell of it.

        Raises:
            NotFinite: its loss is not finite.
        """
        figures = step.figures.read()
        loss = figures.get("loss", math.nan)
        if "loss" in figures and not math.isfinite(loss):
            raise NotFinite(
                f"site {self.site}, phase {self.phase}, round {step.round}, step {step.number}: the loss is {loss}",
                f"lower {self.phase}.optimizer.lr (now {self.settings.optimizer.lr:g}) or look for damaged pictures "
                "with `python -m sites check`",
            )
        for name, value in figures.items():
            totals[name] += value
        if self.progress:
            self.progress(step.number, self.steps_per_round, loss)


class _Step(NamedTuple):
    """A step that was made, or at least asked for."""

    round: int
    number: int
    """Within the round, from 1."""
    figures: Figures


def exhausted(steps: Steps) -> dict[str, float]:
    """All steps that are left; the figures of the round."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """A copy of `value`; in the memory format of `parameter` if it has its shape.

    A file keeps no memory format, and the fused optimiser pairs numbers by their place in memory: moments in another
    format would move other weights.
    """
    if value.shape != parameter.shape:
        return value.clone()
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device, requires_grad=False).copy_(value)
