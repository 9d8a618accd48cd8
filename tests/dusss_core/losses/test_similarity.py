import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dusss_core.config import UncertaintyConfig
from dusss_core.losses import (
    Embedding,
    Gaussian,
    cosine,
    saturation,
    saturation_warning,
    semantic_distance,
    sigma_regulariser,
    supervised_similarity,
    wasserstein2,
)
from tests.dusss_core.gradients import assert_same_as_reference

CONFIG = UncertaintyConfig(scale=0.7, offset=0.2, constraint=0.9)


def rows(count: int, seed: int, width: int = 6) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def with_duplicates(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets whose first rows are the same vector, and in one of which two rows are."""
    a, b = rows(count, seed), rows(count, seed + 1)
    b[0] = a[0]
    a[-1] = a[0]
    return a, b


CASES = {
    "all different": (rows(4, 1), rows(5, 2)),
    "duplicates": with_duplicates(5, 3),
    "all the same": (rows(1, 5).repeat(4, 1), rows(1, 5).repeat(4, 1)),
    "one pair": (rows(1, 7), rows(1, 8)),
    "one pair of duplicates": (rows(1, 9), rows(1, 9)),
}
each_case = pytest.mark.parametrize("pair", CASES.values(), ids=CASES)


def naive_cosine(a, b):
    return torch.stack([torch.stack([x @ y / (x.norm() * y.norm()) for y in b]) for x in a])


def naive_distance(a, b, eps=1e-6):
    """The Euclidean distance, with gradient 0 where it is below its floor."""
    out = []
    for x in a:
        for y in b:
            radicand = ((x / x.norm() - y / y.norm()) ** 2).sum()
            out.append(radicand.sqrt() if radicand > eps else (x.sum() + y.sum()) * 0 + math.sqrt(eps))
    return torch.stack(out).view(len(a), len(b))


def naive_wasserstein(mu_a, log_sigma_a, mu_b, log_sigma_b):
    of_means = (mu_a[:, None] - mu_b[None]) ** 2
    return (of_means + (log_sigma_a.exp()[:, None] - log_sigma_b.exp()[None]) ** 2).mean(dim=-1)


def naive_similarity(s_a, mu_a, l_a, s_b, mu_b, l_b, detach):
    uncertainty = CONFIG.scale * naive_wasserstein(mu_a, l_a, mu_b, l_b) + CONFIG.offset
    if detach:
        uncertainty = uncertainty.detach()
    d_sss = torch.exp(-CONFIG.constraint * uncertainty / naive_distance(s_a, s_b))
    return 1 - (1 - naive_cosine(s_a, s_b)) * d_sss


def embedding(semantic, mu, log_sigma) -> Embedding:
    return Embedding(semantic, Gaussian(mu, log_sigma))


def similarity(*tensors, sss=True, detach=False, config=CONFIG):
    a, b = embedding(*tensors[:3]), embedding(*tensors[3:])
    return supervised_similarity(a, b, config, sss=sss, detach_uncertainty=detach)[0]


def six(pair):
    a, b = pair
    return a, a * 0.5, a * 0.3, b, b * 0.5, b * 0.3


@each_case
def test_cosine_is_the_naive_one(pair):
    assert_same_as_reference(cosine, naive_cosine, *pair)


@each_case
def test_semantic_distance_is_the_naive_one_also_at_duplicates(pair):
    assert_same_as_reference(semantic_distance, naive_distance, *pair, tolerance=5e-5)


def test_cosine_of_a_zero_row_is_zero_and_its_gradient_finite():
    a = torch.zeros(2, 3, requires_grad=True)
    value = cosine(a, rows(4, 1, width=3))
    assert not value.any()
    value.sum().backward()
    assert a.grad.isfinite().all()


@each_case
def test_wasserstein_is_the_naive_one_also_at_duplicates(pair):
    a, b = pair
    assert_same_as_reference(wasserstein2, naive_wasserstein, a, a * 0.3, b, b * 0.3)


def test_wasserstein_is_never_negative():
    a = rows(50, 1, width=128)
    assert (wasserstein2(a, a, a, a) >= 0).all()


def test_wasserstein_keeps_small_distances_far_from_the_origin():
    a = rows(3, 1)
    near = a.double() + 0.01 * rows(3, 2)
    shift = 1000.0
    got = wasserstein2(a + shift, a * 0, (near + shift).float(), a * 0).diagonal()
    wanted = ((a + shift).double() - (near + shift).float().double()).square().mean(dim=-1)
    torch.testing.assert_close(got.double(), wanted, rtol=0.05, atol=1e-6)


def test_wasserstein_does_not_depend_on_the_width():
    a, b = rows(3, 1), rows(4, 2)
    twice = [torch.cat([x, x], dim=1) for x in (a, a * 0.1, b, b * 0.1)]
    torch.testing.assert_close(wasserstein2(*twice), wasserstein2(a, a * 0.1, b, b * 0.1))


def test_no_tensor_of_all_pairs_by_width_is_made():
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    tensors = [rows(20, seed, width=30).requires_grad_() for seed in range(6)]
    with Watch():
        similarity(*tensors).sum().backward()
    assert 0 < largest <= 2 * 40 * 30 < 20 * 20 * 30


@each_case
@pytest.mark.parametrize("detach", [False, True])
def test_supervised_similarity_is_the_naive_one(pair, detach):
    assert_same_as_reference(
        lambda *t: similarity(*t, detach=detach), lambda *t: naive_similarity(*t, detach), *six(pair)
    )


@each_case
def test_without_sss_the_similarity_is_the_plain_cosine(pair):
    a, b = embedding(*six(pair)[:3]), embedding(*six(pair)[3:])
    plain, d_sss = supervised_similarity(a, b, CONFIG, sss=False, detach_uncertainty=False)
    torch.testing.assert_close(plain, naive_cosine(*pair))
    assert d_sss.shape == plain.shape and (d_sss == 1).all()


def test_uncertainty_makes_a_pair_more_similar_and_detached_gets_no_gradient():
    tensors = [value.clone().requires_grad_() for value in six(CASES["all different"])]
    doubted = [*tensors[:4], tensors[4] + 3, tensors[5]]
    assert (similarity(*doubted) > similarity(*tensors)).all()
    gradients = torch.autograd.grad(similarity(*tensors, detach=True).sum(), tensors, allow_unused=True)
    assert [g is not None and bool(g.any()) for g in gradients] == [True, False, False, True, False, False]


def test_d_sss_is_between_zero_and_one_and_reaches_the_similarity():
    a, b = embedding(*six(CASES["all different"])[:3]), embedding(*six(CASES["all different"])[3:])
    sim_hat, d_sss = supervised_similarity(a, b, CONFIG, sss=True, detach_uncertainty=True)
    assert ((d_sss > 0) & (d_sss < 1)).all()
    torch.testing.assert_close(sim_hat, 1 - (1 - cosine(a.semantic, b.semantic)) * d_sss)
    assert not torch.allclose(sim_hat, cosine(a.semantic, b.semantic), atol=0.01)


def test_log_sigma_is_held_between_its_bounds():
    s_a, mu_a, l_a, s_b, mu_b, l_b = six(CASES["all different"])
    config = UncertaintyConfig(log_sigma_min=-1, log_sigma_max=1)
    wild = similarity(s_a, mu_a, l_a + 500, s_b, mu_b, l_b - 500, config=config)
    held = similarity(s_a, mu_a, l_a * 0 + 1, s_b, mu_b, l_b * 0 - 1, config=config)
    torch.testing.assert_close(wild, held)


def test_sigma_regulariser_is_the_mean_square_of_all_entries():
    a, b = rows(3, 1), rows(5, 2)

    def naive(x, y):
        return torch.cat([x.flatten(), y.flatten()]).square().mean()

    def ours(x, y):
        return sigma_regulariser(Gaussian(x * 7, x), Gaussian(y * 7, y))

    assert_same_as_reference(ours, naive, a, b)
    assert sigma_regulariser(Gaussian(a[:0], a[:0])) == 0


def test_saturation_gives_the_quantiles():
    got = saturation(torch.linspace(0, 1, 101).view(1, -1))
    assert got == pytest.approx({"dsss_p10": 0.1, "dsss_p50": 0.5, "dsss_p90": 0.9}, abs=1e-6)
    assert saturation(torch.zeros(0, 3)) == {}


def test_autocast_changes_nothing():
    tensors = six(CASES["duplicates"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = (
            similarity(*tensors),
            semantic_distance(*tensors[::3]),
            wasserstein2(*tensors[1:3], *tensors[4:]),
        )
    outside = (
        similarity(*tensors),
        semantic_distance(*tensors[::3]),
        wasserstein2(*tensors[1:3], *tensors[4:]),
    )
    for got, wanted in zip(inside, outside, strict=True):
        assert got.dtype == torch.float32
        assert torch.equal(got, wanted)


def test_bfloat16_embeddings_give_finite_float32_with_finite_gradients():
    tensors = [value.bfloat16().requires_grad_() for value in six(CASES["duplicates"])]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = similarity(*tensors)
    assert value.dtype == torch.float32 and value.isfinite().all()
    value.sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in tensors)


@pytest.mark.parametrize(
    ("quantiles", "told"),
    [
        ((0.0, 0.01, 0.4), "saturated near 0"),
        ((0.6, 0.97, 1.0), "saturated near 1"),
        ((0.40, 0.42, 0.45), "nearly constant"),
        ((0.2, 0.5, 0.8), None),
    ],
)
def test_supervision_that_does_nothing_is_told(quantiles, told):
    warning = saturation_warning(*quantiles)
    assert warning is None if told is None else told in warning and "pretrain.uncertainty" in warning
