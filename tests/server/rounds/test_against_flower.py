"""The aggregation against Flower's own strategies on the same replies: the same bits, with no two answers in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp import strategy
from flwr.serverapp.strategy.multikrum import select_multikrum

from feddusss.wire import is_statistic
from server.rounds import aggregation
from server.rounds.aggregation import Aggregator, SiteModel
from server.rounds.spool import Spool
from server.study.federation import FederationConfig

SHAPES = {
    "a.weight": (3, 4, 5),
    "b.bias": (1,),
    "c.scale": (),
    "d.weight": (70, 31),
    "e.weight": (2,),
    "f.none": (0, 3),
}
SHAPES |= {f"g{i}.weight": (242,) for i in range(8)}
"""Of which one number is left over by pieces of 241."""
ROUNDS = 3


def model(seed: int, around: dict | None = None) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}
    tensors["c.scale"] = torch.tensor(-0.0)
    tensors["n.running_var"] = torch.rand(7, generator=draw)
    tensors["n.num_batches_tracked"] = torch.tensor(seed)
    if around is None:
        return tensors
    return {name: around[name] + 0.1 * t if t.is_floating_point() else t for name, t in tensors.items()}


def flowers(config: FederationConfig):
    return {
        "fedavg": strategy.FedAvg,
        "fedavgm": lambda: strategy.FedAvgM(server_learning_rate=config.server_lr, server_momentum=config.momentum),
        "fedadam": lambda: strategy.FedAdam(
            eta=config.server_lr, beta_1=config.beta1, beta_2=config.beta2, tau=config.tau
        ),
        "fedyogi": lambda: strategy.FedYogi(
            eta=config.server_lr, beta_1=config.beta1, beta_2=config.beta2, tau=config.tau
        ),
        "fedmedian": strategy.FedMedian,
        "fedtrimmedavg": lambda: strategy.FedTrimmedAvg(beta=config.trim),
        "krum": lambda: strategy.Krum(num_malicious_nodes=config.byzantine),
    }[config.strategy]()


def replies(current, sites):
    learned = [name for name in sorted(current) if not is_statistic(name, current[name])]
    return [
        RecordDict(
            {
                "arrays": ArrayRecord({name: site.tensors[name] for name in learned}),
                "metrics": MetricRecord({"num-examples": site.examples}),
            }
        )
        for _, site in sorted(sites.items())
    ]


@pytest.mark.parametrize("sites", [3, 4, 13])
@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedmedian", "fedtrimmedavg", "krum"])
def test_every_strategy_gives_the_bits_that_flowers_own_gives(name, sites, tmp_path, monkeypatch):
    monkeypatch.setattr(aggregation, "_PIECE", 256)
    monkeypatch.setattr(aggregation, "_PIECES", 241 * sites)
    config = FederationConfig(strategy=name, server_lr=0.3, trim=0.34 if sites == 3 else 0.2)
    ours, flower, current = Aggregator(config), flowers(config), model(0)
    for round in range(ROUNDS):
        spool = Spool(tmp_path, current)
        drawn = {f"s{i:02d}": model(100 * round + i + 1, current) for i in range(sites)}
        plain = {site: SiteModel(tensors, 3 + 7 * i) for i, (site, tensors) in enumerate(drawn.items())}
        waiting = {
            site: SiteModel(spool.put(answer.tensors), answer.examples) for site, answer in reversed(plain.items())
        }
        learned = {key: current[key] for key in sorted(current) if not is_statistic(key, current[key])}
        plain_arrays = hasattr(flower, "m_t")
        flower.current_arrays = {k: t.numpy() for k, t in learned.items()} if plain_arrays else ArrayRecord(learned)
        messages = [aggregation._message(content) for content in replies(current, plain)]
        wanted, _ = flower.aggregate_train(round, messages)
        found = ours.aggregate(current, waiting)
        for key, array in wanted.items():
            value = torch.from_numpy(np.array(array.numpy())).float().reshape(SHAPES[key])
            assert torch.equal(found[key], value) and torch.equal(found[key].signbit(), value.signbit()), key
        current = found
        spool.close()


def test_krum_chooses_as_flower_does_where_its_rounding_leaves_a_choice():
    current = model(0)
    sites = {f"s{i}": SiteModel(model(i + 1, current), 1) for i in range(9)}
    liar = {name: tensor * 50 if tensor.is_floating_point() else tensor for name, tensor in sites["s4"].tensors.items()}
    sites["s4"] = SiteModel(liar, 1)
    chosen = select_multikrum(contents := replies(current, sites), 2, 1)[0]
    result = Aggregator(FederationConfig(strategy="krum", byzantine=2)).aggregate(current, sites)
    site = f"s{next(i for i, content in enumerate(contents) if content is chosen)}"
    assert all(torch.equal(result[name], sites[site].tensors[name]) for name in current)


def test_krum_tells_updates_apart_that_are_small_beside_the_weights():
    current = {"w": torch.full((1000,), 1000.0)}
    steps = {"a": 1e-3, "b": 1.1e-3, "c": 1.2e-3, "d": 1.3e-3, "z": 0.5}
    sites = {
        name: SiteModel({"w": current["w"] + step * torch.linspace(0.5, 1, 1000)}, 1) for name, step in steps.items()
    }
    result = Aggregator(FederationConfig(strategy="krum", byzantine=1)).aggregate(current, sites)
    assert torch.equal(result["w"], sites["b"].tensors["w"]) or torch.equal(result["w"], sites["c"].tensors["w"])
