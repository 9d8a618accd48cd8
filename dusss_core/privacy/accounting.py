"""What a list of charges comes to: epsilon at a delta, how much still fits, and the noise that a plan needs.

Renyi differential privacy (RDP) decides. It is an upper bound that composes by addition and costs milliseconds; the
numerical accountant (PRV) is tighter and shown beside it. Steps that all records take part in are counted exactly. The
Gaussian approximation (GDP) of other steps reads too low and is not here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dusss_core.privacy.charge import Charge

ORDERS = np.array(
    [2 + i / 10 for i in range(31)] + [5.5 + i / 2 for i in range(10)] + [*range(11, 33)] + [36, 40, 48, 56, 64]
    + [80, 96, 128, 192, 256, 384, 512],
    dtype=float,
)  # fmt: skip
"""Renyi orders. Any choice is sound, more are tighter. Orders below 2 matter only where epsilon is beyond 20 or so."""
MOST_ROUNDS = 10**6
_ROUNDING = 1e-12
"""Added to a step's log-moment: more than what the sums of Mironov et al. 2019 lose when they are computed."""
_LARGEST = 1e4
"""An epsilon beyond it is no bound worth a number: infinite."""


@dataclass(frozen=True)
class Budget:
    """What a site is willing to spend over all studies."""

    epsilon: float
    delta: float
    records_per_patient: int = 1
    """k: most training records that one patient has. Epsilon and delta are the patient's."""


def coalesce(charges: Iterable[Charge]) -> list[Charge]:
    """The same charges with those of one noise and one sample rate added up; exact, since RDP and PRV compose so."""
    steps: dict[tuple[float, float], int] = {}
    for charge in charges:
        key = charge.sample_rate, charge.noise_multiplier
        steps[key] = steps.get(key, 0) + charge.steps
    return [Charge(count, rate, noise) for (rate, noise), count in steps.items()]


def epsilon(charges: Iterable[Charge], delta: float, records_per_patient: int = 1) -> float:
    """Upper bound on what `charges` reveal of one patient; infinite if there is none.

    By RDP, always. One record: the conversion of Balle et al. 2020, theorem 21. k records: being (e, d)-private for one
    record gives (k e, d (1 + exp(e) + ... + exp((k - 1) e))) for k of them (Vadhan 2017, lemma 2.2: record after record
    is taken away), and e is chosen so that this d is `delta`. Where every charge is of all records there is an exact
    value too (`_exact`), and the smaller of the two holds.

    Args:
        delta: the patient's.
        records_per_patient: k.
    """
    charges = list(charges)
    # the settings come from outside: what is no number in range bounds nothing, and must never look cheap
    if not all(_is_sane(charge) for charge in charges):
        return math.inf
    if not charges:
        return 0.0
    each = [c.steps * _divergence(float(c.sample_rate), float(c.noise_multiplier)) for c in coalesce(charges)]
    divergence = np.sum(each, axis=0)
    return min(_group_epsilon(divergence, delta, records_per_patient), _exact(charges, delta, records_per_patient))


def epsilon_prv(charges: Iterable[Charge], delta: float) -> float | None:
    """Upper bound by numerical composition (Gopi et al. 2021) for one record, to 0.01; None where it cannot be had."""
    charges = list(charges)
    if not charges:
        return 0.0
    if not epsilon(charges, delta) < 100:
        return None  # the grid would not fit into memory
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(charge.noise_multiplier, charge.sample_rate, charge.steps) for charge in coalesce(charges)]
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = float(accountant.get_epsilon(delta))
    except (ValueError, RuntimeError, ArithmeticError, MemoryError):
        return None
    return found if math.isfinite(found) else None


def fits(budget: Budget, charges: Iterable[Charge]) -> bool:
    """Whether all of `charges` together stay within `budget`."""
    return epsilon(charges, budget.delta, budget.records_per_patient) <= budget.epsilon


def rounds_left(budget: Budget, spent: Sequence[Charge], charge: Charge) -> int:
    """How often `charge` still fits into `budget` after `spent`; `MOST_ROUNDS` at most."""
    spent = coalesce(spent)

    def affordable(rounds: int) -> bool:
        more = [Charge(rounds * charge.steps, charge.sample_rate, charge.noise_multiplier)] if rounds else []
        return fits(budget, [*spent, *more])

    if not affordable(1):
        return 0
    most = 1
    while most < MOST_ROUNDS and affordable(2 * most):
        most *= 2
    enough, too_many = most, 2 * most
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        enough, too_many = (middle, too_many) if affordable(middle) else (enough, middle)
    return min(enough, MOST_ROUNDS)


def plan(budget: Budget, rounds: int, steps: int, sample_rate: float, spent: Sequence[Charge] = ()) -> float:
    """`least_noise` of a study whose rounds all cost the same.

    Args:
        rounds: in all phases together.
        steps: per round.

    Raises:
        ValueError: as `least_noise`.
    """
    return least_noise(budget, lambda noise: [Charge(rounds * steps, sample_rate, noise)], spent)


def least_noise(budget: Budget, charges_at: Callable[[float], Sequence[Charge]], spent: Sequence[Charge] = ()) -> float:
    """The smallest noise multiplier, rounded up to 0.001, with which a study fits into `budget` after `spent`.

    Args:
        charges_at: all that the study costs at a noise multiplier; more noise must not cost more.

    Raises:
        ValueError: no noise below 10,000 is enough: the budget is spent, or too small for any bound.
    """

    def affordable(noise: float) -> bool:
        return fits(budget, [*spent, *charges_at(noise)])

    low, high = 0.0, 10_000.0
    if not affordable(high):
        raise ValueError("no amount of noise is enough")
    while high - low > 0.0005:
        middle = (low + high) / 2
        low, high = (low, middle) if affordable(middle) else (middle, high)
    noise = math.ceil(high * 1000) / 1000
    return noise if affordable(noise) else noise + 0.001


def _is_sane(charge: Charge) -> bool:
    whole = type(charge.steps) is int and charge.steps > 0
    return whole and 0 < charge.sample_rate <= 1 and 0 < charge.noise_multiplier < math.inf


@lru_cache(maxsize=4096)
def _divergence(rate: float, noise: float) -> np.ndarray:
    """RDP of the Poisson-subsampled Gaussian at each order (Mironov, Talwar and Zhang 2019, section 3.3)."""
    whole = {
        order: _at(rate, noise, order) for order in sorted({f(o) for o in ORDERS for f in (math.floor, math.ceil)})
    }
    found = []
    for order in ORDERS:
        below, above = whole[math.floor(order)], whole[math.ceil(order)]
        value = below if order.is_integer() else _at(rate, noise, float(order))
        # It grows with the order. Sums at whole orders have positive terms only; those between have alternating ones.
        found.append(min(max(value, below, 0.0), above) + _ROUNDING / (order - 1))
    return np.array(found)


def _at(rate: float, noise: float, order: float) -> float:
    from opacus.accountants.analysis.rdp import compute_rdp

    try:
        with np.errstate(all="ignore"):
            value = float(compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=float(order)))
    except (ValueError, ArithmeticError):
        return math.inf
    return value if not math.isnan(value) else math.inf


def _exact(charges: Sequence[Charge], delta: float, size: int) -> float:
    """Epsilon of steps that all records take part in; infinite where there are others.

    Without a draw a step is the Gaussian mechanism. `size` records move its sum by `size` at most, and many such steps,
    each chosen after those before, tell exactly what one does with mu^2 the sum of theirs, mu = size / noise (Dong,
    Roth and Su 2022, corollary 3.3). That one's delta at an epsilon is known in closed form (Balle and Wang 2018,
    theorem 8). Nothing is approximated here, unlike in what is called GDP of subsampled steps.
    """
    from scipy.special import log_ndtr

    if any(charge.sample_rate != 1 for charge in charges):
        return math.inf
    mu = size * math.sqrt(sum(charge.steps / charge.noise_multiplier**2 for charge in charges))

    def proves(e: float) -> bool:
        above, below = log_ndtr(mu / 2 - e / mu), e + log_ndtr(-mu / 2 - e / mu)
        return bool(math.exp(above) - math.exp(min(below, above)) + _ROUNDING <= delta)

    low, high = 0.0, _LARGEST
    if not 0 < mu < 100 or not proves(high):
        return math.inf
    while high - low > 1e-9 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (low, middle) if proves(middle) else (middle, high)
    return high


def _group_epsilon(divergence: np.ndarray, delta: float, size: int) -> float:
    """Smallest epsilon of a group of `size` records that some order proves."""
    proof = np.log1p(-1 / ORDERS) - np.log(ORDERS) / (ORDERS - 1)

    def proves(e: float) -> bool:
        # log of d, by (exp(k e) - 1) / (exp(e) - 1) = 1 + exp(e) + ... + exp((k - 1) e)
        log_delta = math.log(delta) - float(np.logaddexp.reduce(np.arange(size) * e))
        return bool((divergence - log_delta / (ORDERS - 1) + proof <= e).any())

    if size == 1:
        value = float(np.min(divergence - math.log(delta) / (ORDERS - 1) + proof))
        return max(0.0, value) if value <= _LARGEST else math.inf
    low, high = 0.0, _LARGEST
    if not proves(high):
        return math.inf
    while high - low > 1e-9 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (low, middle) if proves(middle) else (middle, high)
    return size * high
