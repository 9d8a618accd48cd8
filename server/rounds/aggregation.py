"""The sites' models become one, a piece of every model at a time: however many sites there are, memory holds one model.

The arithmetic is that of Flower's strategies, to the last bit: its mean, median and trimmed mean are taken here from
answers that wait on the disk, and its server optimisers are called with the mean as their one reply. Krum alone rounds
in another way. Flower takes the distance of two models as a difference of large single-precision numbers, |x|^2 +
|y|^2 - 2 xy; here the updates are compared, in double precision.

Two kinds of tensors are told apart. *Learned* ones go through the strategy. *Statistics* (running means and variances
of batch norm, counters, everything that is no float) are no minimiser of a loss: a server optimiser would extrapolate
them, and Adam's step could make a running variance negative, after which the model is NaN. So the averaging
strategies give them their plain weighted mean, and counters their maximum. The robust strategies treat them as
robustly as the weights (median, trimmed mean, or those of the site that Krum chose; all lie between the sites'
values): a plain mean would let one faulty site through.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from dusss_core.errors import UserError
from feddusss import flower
from feddusss.wire import is_statistic
from server.rounds.shares import capped
from server.rounds.spool import Places, Spooled
from server.study.federation import MEANS, FederationConfig

if TYPE_CHECKING:
    from flwr.app import Message
    from torch import Tensor

_ROBUST = ("fedmedian", "fedtrimmedavg", "krum")
_PIECE = 65_536
"""Numbers of one answer that are added at a time: they stay in the processor's cache."""
_PIECES = 4_194_304
"""Numbers of all answers together that are compared at a time."""


@dataclass(frozen=True)
class SiteModel:
    """One site's accepted reply: its tensors by name, and its number of training pictures."""

    tensors: Mapping[str, Tensor]
    examples: float
    handed_on: tuple[str, ...] = ()
    """Prefixes of the learned tensors that the site did not train; see `dusss_core.training.handed_on`."""


class Aggregator:
    """One phase's aggregation, with the server optimiser's state."""

    def __init__(self, config: FederationConfig):
        self._config = config
        self._strategy = _build(config)
        self._steps = 0
        self._names: list[str] = []

    def aggregate(self, current: Mapping[str, Tensor], sites: Mapping[str, SiteModel]) -> dict[str, Tensor]:
        """The next global model.

        Args:
            current: the global model that the sites started from; also gives names, order and dtypes.
            sites: accepted replies by site name, with the names and shapes of `current`. Taken in order of name, so
                that the sum does not depend on who answered first.
        """
        answers = [answer for _, answer in sorted(sites.items())]
        combined = self._combined(current, answers)
        learned = sorted(name for name in current if not is_statistic(name, current[name]))
        self._names = learned
        if self._strategy is not None:
            new = self._step({name: current[name] for name in learned}, {name: combined[name] for name in learned})
            for name, value in new.items():
                # FedAdam's bias correction is a float64 scalar, which would make the whole model float64.
                combined[name].copy_(_tensor(value))
        self._steps += 1
        return combined

    def state(self) -> dict[str, Tensor]:
        """The server optimiser's state as flat tensors: `steps`, `m/NAME`, `v/NAME`, `momentum/NAME`."""
        import torch

        tensors = {"steps": torch.tensor(self._steps)}
        for prefix, values in self._moments().items():
            tensors.update({f"{prefix}/{name}": torch.from_numpy(np.array(value)) for name, value in values.items()})
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from `state()`."""
        self._steps = int(tensors["steps"])
        moments: dict[str, dict[str, np.ndarray]] = {}
        for key, tensor in tensors.items():
            prefix, slash, name = key.partition("/")
            if slash:
                moments.setdefault(prefix, {})[name] = tensor.numpy().copy()
        if "m" in moments:
            self._strategy.m_t, self._strategy.v_t = moments["m"], moments["v"]
        if "momentum" in moments:
            self._names = sorted(moments["momentum"])
            self._strategy.momentum_vector = [moments["momentum"][name] for name in self._names]

    def _moments(self) -> dict[str, dict[str, np.ndarray]]:
        moments = {"m": getattr(self._strategy, "m_t", None), "v": getattr(self._strategy, "v_t", None)}
        vector = getattr(self._strategy, "momentum_vector", None)
        # FedAvgM keeps its momentum as a list in the order of the arrays it was given.
        moments["momentum"] = None if vector is None else dict(zip(self._names, vector, strict=True))
        return {prefix: values for prefix, values in moments.items() if values}

    def _weight(self, site: SiteModel) -> float:
        return float(site.examples) if self._config.weighting == "examples" else 1.0

    def _combined(self, current: Mapping[str, Tensor], answers: Sequence[SiteModel]) -> dict[str, Tensor]:
        """One model out of all: their mean, median, ... of every number."""
        import torch

        name = self._config.strategy
        chosen = self._krum(current, answers) if name == "krum" else None
        result = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in current.items()}
        weights = [self._weight(answer) for answer in answers]
        models = [answer.tensors for answer in answers]
        for run in _runs(current, answers, by_tensor=name in _ROBUST, means=name in MEANS):
            for start, stop in run.pieces(_PIECE if name in MEANS else _PIECES // len(answers)):
                if chosen is not None:
                    value = run.numbers(models[chosen], start, stop)
                elif not run.floating:
                    value = reduce(np.maximum, (run.numbers(model, start, stop) for model in models))
                elif name in MEANS:
                    value = _mean(run, models, weights, start, stop, self._config.max_share)
                else:
                    value = self._robust(np.stack([run.numbers(model, start, stop) for model in models]))
                run.fill(result, start, value)
        return result

    def _robust(self, values: np.ndarray) -> np.ndarray:
        if self._config.strategy == "fedmedian":
            return np.median(values, axis=0)
        if self._config.strategy == "fedtrimmedavg":
            return flower.trim_mean(values, self._config.trim)
        raise NotImplementedError(f"federation.strategy: {self._config.strategy}")

    def _krum(self, current: Mapping[str, Tensor], answers: Sequence[SiteModel]) -> int:
        """Which answer lies nearest to its n - f - 2 nearest others (Blanchard et al., 2017), of n with f faulty."""
        products = np.zeros((len(answers), len(answers)))
        for run in _runs(current, answers, by_tensor=True):
            for start, stop in run.pieces(_PIECES // (4 * len(answers))) if run.learned else ():
                base = run.numbers(current, start, stop)
                updates = np.stack(
                    [np.subtract(run.numbers(a.tensors, start, stop), base, dtype=np.float64) for a in answers]
                )
                products += updates @ updates.T
        squares = np.diag(products)
        distances = squares[:, None] + squares[None, :] - 2 * products
        np.fill_diagonal(distances, -np.inf)
        closest = max(1, len(answers) - self._config.byzantine - 2)
        return int(np.argmin(np.sort(distances)[:, 1 : closest + 1].sum(axis=1)))

    def _step(self, current: dict[str, Tensor], mean: dict[str, Tensor]) -> dict[str, np.ndarray]:
        """The server optimiser's arithmetic on the learned tensors, with their mean as its one reply."""
        from flwr.app import ArrayRecord, MetricRecord, RecordDict

        # Set here and not by configure_train, which samples nodes. FedAvgM would otherwise go on from its own last
        # result, which a resumed process does not have; FedOpt wants plain arrays.
        if hasattr(self._strategy, "m_t"):
            self._strategy.current_arrays = {name: tensor.numpy() for name, tensor in current.items()}
        else:
            self._strategy.current_arrays = ArrayRecord(current)
        content = RecordDict({"arrays": ArrayRecord(mean), "metrics": MetricRecord({"num-examples": 1.0})})
        # FedAdam raises its betas to server_round + 1, so the first step, t = 1 of Adam, is server_round 0.
        arrays, _ = self._strategy.aggregate_train(self._steps, [_message(content)])
        return {name: array.numpy() for name, array in arrays.items()}


@dataclass(frozen=True)
class _Run:
    """Tensors that follow each other on the disk and are treated alike: one row of numbers."""

    names: list[str]
    sizes: list[int]
    floating: bool
    learned: bool
    """Of the first tensor; the mean makes no difference."""
    handed_on: tuple[int, ...]
    """Which of the answers do not count in the mean."""

    def pieces(self, size: int) -> Iterator[tuple[int, int]]:
        """First number, and the one after the last, of each piece."""
        total, size = sum(self.sizes), max(2, size)
        # none of one number alone: numpy adds up a single column in another order than those of a table
        ends = [*range(size, total - 1, size), total] if total else []
        yield from zip([0, *ends], ends, strict=False)

    def numbers(self, tensors: Mapping[str, Tensor], start: int, stop: int) -> np.ndarray:
        """A piece of one model, as a copy."""
        if isinstance(tensors, Spooled):
            return tensors.numbers(self.names, start, stop)
        parts = self._parts(start, stop)
        return np.concatenate([tensors[name].reshape(-1).numpy()[low:high] for name, low, high in parts])

    def fill(self, model: Mapping[str, Tensor], start: int, values: np.ndarray) -> None:
        """Write a piece into a model."""
        for name, low, high in self._parts(start, start + len(values)):
            model[name].reshape(-1).numpy()[low:high] = values[: high - low]
            values = values[high - low :]

    def _parts(self, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
        first = 0
        for name, size in zip(self.names, self.sizes, strict=True):
            low, high = max(start - first, 0), min(stop - first, size)
            if low < high:
                yield name, low, high
            first += size


def _runs(
    current: Mapping[str, Tensor], answers: Sequence[SiteModel], by_tensor: bool, means: bool = False
) -> list[_Run]:
    """The model's tensors in the order of the disk, gathered as far as they are treated alike.

    Args:
        by_tensor: each for itself, as Flower's robust strategies take them.
        means: what a site did not train is not counted in the mean of those that did. The robust strategies get it as
            it came: a stand-in would give what one of the others faked a second voice.
    """

    def kind(name: str):
        tensor, learned = current[name], not is_statistic(name, current[name])
        without = tuple(i for i, a in enumerate(answers) if means and learned and name.startswith(a.handed_on))
        without = without if len(without) < len(answers) else ()
        return tensor.dtype, without, name if by_tensor else ""

    runs = []
    for (dtype, without, _), names in groupby(Places(current).order, kind):
        names = list(names)
        learned = not is_statistic(names[0], current[names[0]])
        sizes = [current[name].numel() for name in names]
        runs.append(_Run(names, sizes, dtype.is_floating_point, learned, without))
    return runs


def _mean(
    run: _Run,
    models: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    start: int,
    stop: int,
    max_share: float | None = None,
) -> np.ndarray:
    """Weighted mean of a piece. What a site did not train is replaced by the mean of those that did, so that it changes
    nothing in the mean of all."""
    trained = [i for i in range(len(models)) if i not in run.handed_on]
    if max_share is not None:
        # among those that trained it: the others' part goes to them
        weights = list(weights)
        for i, weight in zip(trained, capped([weights[i] for i in trained], max_share), strict=True):
            weights[i] = weight
    stand_in, total = None, sum(weights)
    if run.handed_on:
        of_these = sum(weights[i] for i in trained)
        stand_in = sum(run.numbers(models[i], start, stop) * (weights[i] / of_these) for i in trained)
    mean = None
    for i, (model, weight) in enumerate(zip(models, weights, strict=True)):
        part = (stand_in if i in run.handed_on else run.numbers(model, start, stop)) * (weight / total)
        mean = part if mean is None else np.add(mean, part, out=mean)
    return mean


def _tensor(value: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(np.array(value))


def sites_needed(config: FederationConfig, trainers: int = 0) -> int:
    """The least number of replies with which the strategy does what its name says.

    Args:
        trainers: training sites that are known, which the default threshold of secure aggregation goes by.
    """
    needed = {
        "fedmedian": 3,
        "fedtrimmedavg": next(n for n in range(3, 10_000) if int(config.trim * n) >= 1),
        "krum": 2 * config.byzantine + 3,
    }
    secure = 1
    if config.secure_aggregation:
        from feddusss.secagg.member import default_threshold

        secure = config.secure_threshold or default_threshold(trainers)
    return max(needed.get(config.strategy, 1), config.min_sites, secure)


def check_number_of_sites(config: FederationConfig, sites: int) -> None:
    """Refuse a study that has too few sites for its strategy.

    Raises:
        UserError: with the two numbers.
    """
    needed = sites_needed(config)
    if sites >= needed:
        return
    because = {
        "fedtrimmedavg": f" to cut {config.trim:g} off at each end",
        "krum": f" with byzantine: {config.byzantine} (2 * byzantine + 3)",
    }.get(config.strategy, "")
    if config.min_sites == needed:
        because = " (federation.min_sites)"
    elif config.secure_aggregation:
        because = " (federation.secure_aggregation)"
    raise UserError(
        f"federation.strategy: {config.strategy} needs at least {needed} training sites{because}, "
        f"and there are {sites}",
        "add sites, or choose fedavg" if config.strategy in _ROBUST else "add sites, or lower federation.min_sites",
    )


def _build(config: FederationConfig):
    """Flower's server optimiser; None for the strategies without one. FedProx differs at the sites only."""
    from flwr.serverapp import strategy

    name = config.strategy
    if name == "fedavgm":
        return strategy.FedAvgM(server_learning_rate=config.server_lr, server_momentum=config.momentum)
    if name in ("fedadam", "fedyogi"):
        kind = strategy.FedAdam if name == "fedadam" else strategy.FedYogi
        return kind(eta=config.server_lr, beta_1=config.beta1, beta_2=config.beta2, tau=config.tau)
    if name in ("fedavg", "fedprox", *_ROBUST):
        return None
    raise NotImplementedError(f"federation.strategy: {name}")


def _message(content) -> Message:
    from flwr.app import Message

    metadata = flower.Metadata(
        run_id=0,
        message_id="",
        src_node_id=0,
        dst_node_id=0,
        reply_to_message_id="",
        group_id="",
        created_at=0.0,
        ttl=1.0,
        message_type="train",
    )
    return Message(content=content, metadata=metadata)
