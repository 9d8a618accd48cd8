"""The sites' models become one: Flower's strategies do the arithmetic, this file makes them resumable and safe.

Two kinds of tensors are told apart. *Learned* ones go through the strategy. *Statistics* (running means and variances
of batch norm, counters, everything that is no float) are no minimiser of a loss: a server optimiser would extrapolate
them, and Adam's step could make a running variance negative, after which the model is NaN. So the averaging
strategies give them their plain weighted mean, and counters their maximum. The robust strategies treat them as
robustly as the weights (median, trimmed mean, or those of the site that Krum chose; all lie between the sites'
values): a plain mean would let one faulty site through.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dusss_core.errors import UserError
from feddusss.wire import is_statistic
from server.study.federation import MEANS, FederationConfig

if TYPE_CHECKING:
    from flwr.app import Message
    from torch import Tensor

_ROBUST = ("fedmedian", "fedtrimmedavg", "krum")


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
        import torch

        sites = dict(sorted(sites.items()))
        learned = sorted(name for name in current if not is_statistic(name, current[name]))
        self._names = learned
        averaged, chosen = self._run_strategy(
            {name: current[name] for name in learned},
            self._learned(learned, sites),
        )
        result = {}
        for name, tensor in current.items():
            if name in averaged:
                value = averaged[name]
            else:
                value = self._statistic(
                    [site.tensors[name].numpy() for site in sites.values()],
                    [self._weight(site) for site in sites.values()],
                    chosen,
                )
            # FedAdam's bias correction is a float64 scalar, which would make the whole model float64.
            result[name] = torch.from_numpy(np.array(value)).to(tensor.dtype).reshape(tensor.shape)
        self._steps += 1
        return result

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

    def _learned(self, names: list[str], sites: Mapping[str, SiteModel]) -> list[tuple[dict[str, Tensor], float]]:
        """Each site's learned tensors, and its weight. What a site did not train is replaced by the mean of those that
        did, so that it changes nothing in the mean of all.

        The robust strategies get it as it came: a stand-in would give what one of the others faked a second voice.
        """
        learned = [({name: site.tensors[name] for name in names}, self._weight(site)) for site in sites.values()]
        for name in names if self._config.strategy in MEANS else ():
            trained = [site for site in sites.values() if not name.startswith(site.handed_on)]
            if not 0 < len(trained) < len(sites):
                continue
            total = sum(self._weight(site) for site in trained)
            mean = sum(site.tensors[name] * (self._weight(site) / total) for site in trained)
            for (tensors, _), site in zip(learned, sites.values(), strict=True):
                if name.startswith(site.handed_on):
                    tensors[name] = mean
        return learned

    def _run_strategy(
        self, current: dict[str, Tensor], sites: list[tuple[dict[str, Tensor], float]]
    ) -> tuple[dict[str, np.ndarray], int]:
        """Flower's arithmetic on the learned tensors; also the index of the site that Krum chose (else 0)."""
        from flwr.app import ArrayRecord, MetricRecord, RecordDict

        # Set here and not by configure_train, which samples nodes. FedAvgM would otherwise go on from its own last
        # result, which a resumed process does not have; FedOpt wants plain arrays.
        if hasattr(self._strategy, "m_t"):
            self._strategy.current_arrays = {name: tensor.numpy() for name, tensor in current.items()}
        else:
            self._strategy.current_arrays = ArrayRecord(current)
        replies = [
            _message(
                RecordDict(
                    {
                        "arrays": ArrayRecord(tensors),
                        "metrics": MetricRecord({"num-examples": weight, "index": index}),
                    }
                )
            )
            for index, (tensors, weight) in enumerate(sites)
        ]
        # FedAdam raises its betas to server_round + 1, so the first step, t = 1 of Adam, is server_round 0.
        arrays, metrics = self._strategy.aggregate_train(self._steps, replies)
        chosen = round(float(metrics["index"])) if self._config.strategy == "krum" else 0
        return {name: array.numpy() for name, array in arrays.items()}, chosen

    def _statistic(self, values: list[np.ndarray], weights: list[float], chosen: int) -> np.ndarray:
        if self._config.strategy == "krum":
            return values[chosen]
        if not np.issubdtype(values[0].dtype, np.floating):
            return np.max(np.stack(values), axis=0)
        if self._config.strategy == "fedmedian":
            return np.median(np.stack(values), axis=0)
        if self._config.strategy == "fedtrimmedavg":
            from flwr.serverapp.strategy.fedtrimmedavg import trim_mean

            return trim_mean(np.stack(values), self._config.trim)
        shares = [weight / sum(weights) for weight in weights]
        mean = values[0] * shares[0]
        for value, share in zip(values[1:], shares[1:], strict=True):
            mean = mean + value * share
        return mean


def sites_needed(config: FederationConfig) -> int:
    """The least number of replies with which the strategy does what its name says."""
    needed = {
        "fedmedian": 3,
        "fedtrimmedavg": next(n for n in range(3, 10_000) if int(config.trim * n) >= 1),
        "krum": 2 * config.byzantine + 3,
    }
    secure = (config.secure_threshold or 2) if config.secure_aggregation else 1
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
    from flwr.serverapp import strategy

    name = config.strategy
    if name == "fedavgm":
        return strategy.FedAvgM(server_learning_rate=config.server_lr, server_momentum=config.momentum)
    if name in ("fedadam", "fedyogi"):
        kind = strategy.FedAdam if name == "fedadam" else strategy.FedYogi
        return kind(eta=config.server_lr, beta_1=config.beta1, beta_2=config.beta2, tau=config.tau)
    if name == "fedmedian":
        return strategy.FedMedian()
    if name == "fedtrimmedavg":
        return strategy.FedTrimmedAvg(beta=config.trim)
    if name == "krum":
        return strategy.Krum(num_malicious_nodes=config.byzantine)
    return strategy.FedAvg()  # FedProx differs at the sites only


def _message(content) -> Message:
    from flwr.app import Message
    from flwr.app.metadata import Metadata

    metadata = Metadata(
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
