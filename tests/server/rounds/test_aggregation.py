"""The strategies against arithmetic by hand, their state across a resume, and statistics that stay statistics."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from server.rounds import aggregation
from server.rounds.aggregation import Aggregator, SiteModel
from server.study.federation import FederationConfig

CURRENT = {
    "w": torch.tensor([1.0, 2.0]),
    "scale": torch.tensor(1.0),
    "bn.running_mean": torch.tensor([0.0, 0.0]),
    "bn.running_var": torch.tensor([1.0, 1.0]),
    "bn.num_batches_tracked": torch.tensor(10),
}
SITES = {
    "b": (
        3.0,
        {
            "w": [4.0, 2.0],
            "scale": 3.0,
            "bn.running_mean": [1.0, 0.0],
            "bn.running_var": [0.5, 1e-4],
            "bn.num_batches_tracked": 17,
        },
    ),
    "a": (
        1.0,
        {
            "w": [0.0, 6.0],
            "scale": 1.0,
            "bn.running_mean": [0.0, 4.0],
            "bn.running_var": [0.1, 1e-4],
            "bn.num_batches_tracked": 15,
        },
    ),
    "c": (
        4.0,
        {
            "w": [2.0, 2.0],
            "scale": 1.0,
            "bn.running_mean": [0.0, 0.0],
            "bn.running_var": [0.1, 1e-4],
            "bn.num_batches_tracked": 12,
        },
    ),
}


def sites(names="abc"):
    return {
        name: SiteModel(
            {key: torch.tensor(value, dtype=CURRENT[key].dtype) for key, value in tensors.items()}, examples
        )
        for name, (examples, tensors) in SITES.items()
        if name in names
    }


def aggregate(**config):
    return Aggregator(FederationConfig(**config)).aggregate(CURRENT, sites())


MEAN = torch.tensor([(3 * 4 + 1 * 0 + 4 * 2) / 8, (3 * 2 + 1 * 6 + 4 * 2) / 8])


def test_fedavg_weighs_by_examples_or_not():
    assert torch.allclose(aggregate()["w"], MEAN)
    assert torch.allclose(aggregate(weighting="uniform")["w"], torch.tensor([2.0, 10 / 3]))
    assert aggregate()["scale"].shape == ()


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi"])
def test_a_site_holds_nothing_back_that_it_did_not_train(strategy):
    def model(names, handed_on=()):
        chosen = {
            name: replace(site, handed_on=handed_on if name == "c" else ()) for name, site in sites(names).items()
        }
        return Aggregator(FederationConfig(strategy=strategy)).aggregate(CURRENT, chosen)

    result = model("abc", handed_on=("w", "bn"))
    torch.testing.assert_close(result["w"], model("ab")["w"])
    assert not torch.allclose(result["w"], model("abc")["w"])
    for name in ("scale", "bn.running_mean", "bn.running_var"):  # trained there, and statistics, which always move
        assert torch.equal(result[name], model("abc")[name])


@pytest.mark.parametrize("strategy", ["fedmedian", "fedtrimmedavg"])
def test_what_one_site_did_not_train_gives_no_voice_to_a_liar(strategy):
    honest = {name: SiteModel({**CURRENT, "w": torch.tensor([float(i), 1.0])}, 1) for i, name in enumerate("ab")}
    without = {"d": SiteModel(CURRENT, 1, handed_on=("w",))}
    liar = {"z": SiteModel({**CURRENT, "w": torch.tensor([1e9, -1e9])}, 1)}
    config = FederationConfig(strategy=strategy, trim=0.3)
    assert Aggregator(config).aggregate(CURRENT, {**honest, **without, **liar})["w"].abs().max() < 10


def test_a_strategy_without_arithmetic_is_no_trimmed_mean_and_no_plain_mean(monkeypatch):
    for name in get_args(FederationConfig.model_fields["strategy"].annotation):
        aggregate(strategy=name, trim=0.34)
    other = FederationConfig().model_copy(update={"strategy": "other"})
    for robust in (False, True):
        monkeypatch.setattr(aggregation, "_ROBUST", ("other",) if robust else ())
        monkeypatch.setattr(aggregation, "MEANS", () if robust else ("other",))
        with pytest.raises(NotImplementedError, match="other"):
            Aggregator(other).aggregate(CURRENT, sites())


def test_what_no_site_trained_stays():
    handed_on = {name: replace(site, tensors=CURRENT, handed_on=("w",)) for name, site in sites().items()}
    assert torch.equal(Aggregator(FederationConfig()).aggregate(CURRENT, handed_on)["w"], CURRENT["w"])


def test_one_site_gets_back_its_tensors_bit_for_bit():
    draw = torch.Generator().manual_seed(0)
    tensors = {
        "w": torch.randn(1000, generator=draw) * 1e-3,
        "bn.running_var": torch.rand(7, generator=draw),
        "bn.running_mean": torch.tensor([-0.0, 0.1]),
        "bn.num_batches_tracked": torch.tensor(3),
    }
    result = Aggregator(FederationConfig()).aggregate(tensors, {"a": SiteModel(tensors, 7)})
    assert all(
        torch.equal(
            result[name].view(torch.uint8) if tensor.dim() else result[name],
            tensor.view(torch.uint8) if tensor.dim() else tensor,
        )
        for name, tensor in tensors.items()
    )


def test_the_order_of_answers_does_not_matter():
    backwards = dict(sorted(sites().items(), reverse=True))
    result = Aggregator(FederationConfig()).aggregate(CURRENT, backwards)
    assert all(torch.equal(result[name], aggregate()[name]) for name in CURRENT)


def test_the_order_of_many_answers_does_not_matter_to_the_last_bit():
    draw = torch.Generator().manual_seed(0)
    current = {"w": torch.randn(1000, generator=draw)}
    answers = {name: SiteModel({"w": torch.randn(1000, generator=draw)}, 7) for name in "abcde"}
    forwards, backwards = (
        Aggregator(FederationConfig()).aggregate(current, given) for given in (answers, dict(reversed(answers.items())))
    )
    assert torch.equal(forwards["w"], backwards["w"])


def test_fedavgm_adds_up_momentum():
    aggregator = Aggregator(FederationConfig(strategy="fedavgm", server_lr=0.5, momentum=0.9))
    first = aggregator.aggregate(CURRENT, sites())
    step = CURRENT["w"] - MEAN
    assert torch.allclose(first["w"], CURRENT["w"] - 0.5 * step)
    second = aggregator.aggregate(first, sites())
    step = 0.9 * step + (first["w"] - MEAN)
    assert torch.allclose(second["w"], first["w"] - 0.5 * step)


def test_fedadam_takes_adams_first_step_first():
    config = {"strategy": "fedadam", "server_lr": 0.1, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3}
    aggregator = Aggregator(FederationConfig(**config))
    model, m, v = CURRENT, np.zeros(2), np.zeros(2)
    for t in (1, 2, 3):
        delta = MEAN.numpy() - model["w"].numpy()
        m, v = 0.9 * m + 0.1 * delta, 0.99 * v + 0.01 * delta**2
        rate = 0.1 * np.sqrt(1 - 0.99**t) / (1 - 0.9**t)
        expected = model["w"].numpy() + rate * m / (np.sqrt(v) + 1e-3)
        model = aggregator.aggregate(model, sites())
        assert model["w"].dtype == torch.float32
        np.testing.assert_allclose(model["w"].numpy(), expected, rtol=1e-5)


def test_fedyogi():
    aggregator = Aggregator(FederationConfig(strategy="fedyogi", server_lr=0.1))
    delta = (MEAN - CURRENT["w"]).numpy()
    expected = CURRENT["w"].numpy() + 0.1 * 0.1 * delta / (np.sqrt(0.01 * delta**2) + 1e-3)
    np.testing.assert_allclose(aggregator.aggregate(CURRENT, sites())["w"].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam", "fedyogi"])
def test_a_server_optimiser_goes_on_exactly_from_its_saved_state(strategy):
    config = FederationConfig(strategy=strategy, server_lr=0.3)
    whole = Aggregator(config)
    models = [CURRENT]
    for _ in range(4):
        models.append(whole.aggregate(models[-1], sites()))
    stopped = Aggregator(config)
    model = stopped.aggregate(stopped.aggregate(CURRENT, sites()), sites())
    state = {name: tensor.clone() for name, tensor in stopped.state().items()}
    resumed = Aggregator(config)
    resumed.load_state(state)
    for expected in models[3:]:
        model = resumed.aggregate(model, sites())
        assert all(torch.equal(model[name], expected[name]) for name in CURRENT)


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi"])
def test_statistics_are_averaged_and_counters_take_the_largest(strategy):
    aggregator = Aggregator(FederationConfig(strategy=strategy, server_lr=2.0))
    model = CURRENT
    for _ in range(5):
        model = aggregator.aggregate(model, sites())
        assert torch.allclose(model["bn.running_var"], torch.tensor([(3 * 0.5 + 0.1 + 4 * 0.1) / 8, 1e-4]))
        assert torch.allclose(model["bn.running_mean"], torch.tensor([3 / 8, 4 / 8]))
        assert model["bn.num_batches_tracked"] == 17 and model["bn.num_batches_tracked"].dtype == torch.int64


def test_the_median_and_the_trimmed_mean_ignore_what_one_site_sends():
    honest = {name: SiteModel({**CURRENT, "w": torch.tensor([float(i), 1.0])}, 1) for i, name in enumerate("abcd")}
    liar = {"z": SiteModel({**CURRENT, "w": torch.tensor([1e9, -1e9]), "bn.running_var": torch.tensor([1e9, 1e9])}, 1)}
    median = Aggregator(FederationConfig(strategy="fedmedian")).aggregate(CURRENT, {**honest, **liar})
    trimmed = Aggregator(FederationConfig(strategy="fedtrimmedavg")).aggregate(CURRENT, {**honest, **liar})
    assert torch.equal(median["w"], torch.tensor([2.0, 1.0]))
    assert torch.allclose(trimmed["w"], torch.tensor([2.0, 1.0]))
    assert torch.equal(median["bn.running_var"], torch.ones(2))
    assert torch.allclose(trimmed["bn.running_var"], torch.ones(2))


def test_krum_takes_one_sites_model_whole():
    values = {"a": 1.0, "b": 1.1, "c": 1.2, "d": 1.15, "z": 50.0}
    models = {
        name: SiteModel({**CURRENT, "w": torch.tensor([value, value]), "bn.running_mean": torch.tensor([value, 0])}, 1)
        for name, value in values.items()
    }
    result = Aggregator(FederationConfig(strategy="krum", byzantine=1)).aggregate(CURRENT, models)
    assert float(result["w"][0]) == pytest.approx(1.15) or float(result["w"][0]) == pytest.approx(1.1)
    assert result["bn.running_mean"][0] == result["w"][0]


def test_aggregation_changes_neither_what_it_was_given():
    given, current = sites(), copy.deepcopy(CURRENT)
    before = copy.deepcopy(given)
    for strategy in ("fedavg", "fedavgm", "fedadam", "fedmedian"):
        result = Aggregator(FederationConfig(strategy=strategy)).aggregate(current, given)
        result["w"].fill_(99)
    assert all(torch.equal(current[name], CURRENT[name]) for name in CURRENT)
    assert all(torch.equal(given[s].tensors[name], before[s].tensors[name]) for s in given for name in CURRENT)
