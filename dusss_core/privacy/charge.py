"""What a round of private training costs, before it is begun."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Charge:
    """`steps` releases of the Poisson-subsampled Gaussian mechanism.

    All of it is public: it follows from the study's settings alone, never from the site's records.
    """

    steps: int
    """Noised sums that are released, empty draws included."""
    sample_rate: float
    """q: probability that a record takes part in one of them."""
    noise_multiplier: float
    """Standard deviation of the noise over the true L2 sensitivity of the sum to one record: half of the study's
    `privacy.noise_multiplier` where the sensitivity is 2 C."""
