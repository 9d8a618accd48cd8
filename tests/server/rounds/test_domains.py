"""Sites whose pictures are of different kinds are told of."""

from __future__ import annotations

import pytest
import torch

from server.rounds.aggregation import SiteModel
from server.rounds.domains import FAR, distance_of_sites, warning_of_domains
from server.runs.events import Reporter
from server.simulation.simulate import simulate
from tests.server import fake_training
from tests.server.conftest import make_study


def statistics(mean, variance, layer="stem"):
    return {
        f"{layer}.weight": torch.ones(2),
        f"{layer}.running_mean": torch.tensor(mean),
        f"{layer}.running_var": torch.tensor(variance),
        f"{layer}.num_batches_tracked": torch.tensor(3),
    }


def test_the_distance_is_variance_between_sites_over_variance_within():
    sites = [statistics([0.0, 1.0], [1.0, 3.0]), statistics([4.0, 1.0], [3.0, 1.0])]
    # between: 4 and 0, mean 2; within: 2 and 2
    assert distance_of_sites(sites) == pytest.approx(1.0)
    far = [statistics([9.0 * i, 0.0], [1.0, 1.0], layer="up") for i in range(2)]
    for pairs in (zip(sites, far, strict=True), zip(far, sites, strict=True)):  # whichever layer comes first
        assert distance_of_sites([{**a, **b} for a, b in pairs]) == pytest.approx((81 / 4) / 2)


def test_one_site_and_networks_without_statistics_are_no_distance_apart():
    assert distance_of_sites([]) == 0
    assert distance_of_sites([statistics([5.0, 5.0], [1.0, 1.0])]) == 0
    assert distance_of_sites([{"stem.weight": torch.ones(2)}, {"stem.weight": torch.zeros(2)}]) == 0


def test_layers_without_variance_give_a_number():
    assert distance_of_sites([statistics([0.0, 0.0], [0.0, 0.0])] * 2) == 0


def test_a_warning_is_given_from_the_bound_on():
    def warning(mean):
        sites = [statistics([0.0, 0.0], [1.0, 1.0]), statistics([mean, mean], [1.0, 1.0])]
        return warning_of_domains({name: SiteModel(site, 8.0) for name, site in zip("ab", sites, strict=True)})

    at = 2 * FAR**0.5
    assert warning(0.99 * at) is None
    assert "local_norm: true" in warning(1.01 * at)


class Heard(Reporter):
    def __init__(self):
        self.messages = []

    def on_message(self, text):
        self.messages.append(text)


@pytest.mark.parametrize("apart", [True, False])
def test_a_study_over_two_kinds_of_pictures_is_warned_once_a_phase(fake, tmp_path, monkeypatch, apart):
    shared = fake_training._Trainer.shared

    def of_its_kind(self, **options):
        tensors = shared(self, **options)
        if "norm.running_mean" in tensors:
            tensors["norm.running_mean"] = torch.full((4,), 9.0 if apart and self.site == "birch" else 0.0)
        return tensors

    monkeypatch.setattr(fake_training._Trainer, "shared", of_its_kind)
    heard = Heard()
    simulate(make_study(segment__rounds=4), tmp_path, reporter=heard)
    warned = [text for text in heard.messages if "lie far apart" in text]
    assert [text.split(":")[1].strip() for text in warned] == (["pretrain", "segment"] if apart else [])
    heard = Heard()
    simulate(make_study(segment__rounds=4, local_norm=True), tmp_path / "fedbn", reporter=heard)
    assert not [text for text in heard.messages if "lie far apart" in text]
