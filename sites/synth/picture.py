"""The pictures of the synthetic hospitals: a body, its blobs, and the scanner.

A finding and its look-alikes have the same sizes, contrasts and places. They differ in three properties:

    property   finding                                   look-alike
    edge       ragged: waves 4 to 8 around the outline   lobed: waves 2 and 3 of the same amplitude
    profile    ring: brighter towards the edge           dome: brighter towards the centre, the same mean
    grain      fine speckle inside                       none

A look-alike may share one or two of them, so that only the conjunction tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from dusss_core.seeds import derive_seed
from sites.synth.config import DiseaseConfig, ScannerConfig, SynthConfig

SIDES = ("left", "right")
"""The picture's, not the patient's."""
ZONES = ("upper", "middle", "lower")
CELLS = tuple((side, zone) for side in SIDES for zone in ZONES)

EDGE, PROFILE, GRAIN = 0.11, 0.33, 0.24
"""Amplitudes of the three properties: of the radius, and (twice) of the blob's brightness, where `contrast` multiplies
them. It leaves the outline alone, which is what masks have to follow."""
BRIGHTNESS = (0.17, 0.24)
"""Of a blob over the lung, on intensities in [0, 1]."""


@dataclass(frozen=True)
class Drawing:
    """One picture with what is known about it."""

    image: np.ndarray
    """H x W uint8."""
    mask: np.ndarray
    """H x W uint8, 0 and 255: the findings."""
    findings: tuple[tuple[str, str], ...]
    """(side, zone) of each finding, in the order of CELLS; no other blob lies there."""
    distractors: tuple[tuple[str, str], ...]
    """(side, zone) of each look-alike."""
    radius: float
    """Mean radius of the findings, in pixels of a 64 x 64 picture; 0 without findings."""


def draw(
    config: SynthConfig,
    disease: DiseaseConfig,
    scanner: ScannerConfig,
    *,
    patient: tuple[object, ...],
    record: tuple[object, ...],
    normal: bool = False,
) -> Drawing:
    """Draw one picture.

    Args:
        patient: names that seed the anatomy, which the pictures of a patient share.
        record: names that seed everything else.
        normal: the picture has look-alikes only.
    """
    body = _Body(config.size, np.random.default_rng(derive_seed("synth body", *patient)))
    rng = np.random.default_rng(derive_seed("synth record", *record))
    n_findings = 0 if normal else 1 + int(rng.random() < disease.two_findings)
    n_distractors = int(rng.integers(config.distractors_min, config.distractors_max + 1))
    cells = _choose_cells(rng, disease, n_findings + n_distractors)
    radii = rng.uniform(disease.radius_min, disease.radius_max, len(cells))
    centres = _place(rng, body, cells, radii)
    image = body.render(rng)
    mask = np.zeros((config.size, config.size), bool)
    for index, (centre, radius) in enumerate(zip(centres, radii, strict=True)):
        finding = index < n_findings
        shares = (True, True, True) if finding else _shared_properties(rng)
        added, inside, window = _blob(rng, body, centre, radius, shares, config.contrast)
        image[window] += added
        if finding:
            mask[window] |= inside
    return Drawing(
        image=_scan(rng, image, scanner),
        mask=mask.astype(np.uint8) * 255,
        findings=tuple(sorted(cells[:n_findings], key=CELLS.index)),
        distractors=tuple(sorted(cells[n_findings:], key=CELLS.index)),
        radius=float(radii[:n_findings].mean()) if n_findings else 0.0,
    )


class _Body:
    """One patient's anatomy, in coordinates where the picture is the square [0, 1] x [0, 1]."""

    def __init__(self, size: int, rng: np.random.Generator):
        self.size = size
        self.scale = size / 64
        self.x0 = 0.5 + rng.uniform(-0.02, 0.02)
        self.top, self.bottom = 0.10 + rng.uniform(-0.02, 0.02), 0.90 + rng.uniform(-0.02, 0.02)
        self.offset = 0.215 + rng.uniform(-0.012, 0.012)
        self.width = 0.185 + rng.uniform(-0.012, 0.012)
        self.shoulder = rng.uniform(0.40, 0.47)
        self.heart = rng.uniform(0.08, 0.13)
        self.rib_pitch, self.rib_phase = rng.uniform(0.085, 0.11), rng.uniform(0, 1)
        self.rib_bend = rng.uniform(0.5, 1.1)
        self.lung_level, self.tissue_level = rng.uniform(0.24, 0.32), rng.uniform(0.58, 0.68)

    def cell_centre(self, cell: tuple[str, str]) -> tuple[float, float]:
        """(y, x) of the middle of a zone."""
        side, zone = cell
        y = self.top + (self.bottom - self.top) * (0.19, 0.51, 0.81)[ZONES.index(zone)]
        return y, self.x0 + (-self.offset if side == "left" else self.offset)

    def render(self, rng: np.random.Generator) -> np.ndarray:
        """H x W float64, about [0, 1]: the body without blobs."""
        y, x = ((np.indices((self.size, self.size)) + 0.5) / self.size).astype(np.float64)
        across, down = np.abs(x - self.x0), (y - self.top) / (self.bottom - self.top)
        outer = self.offset + self.width * (0.55 + 0.45 * np.sin(np.pi * (0.12 + 0.55 * np.clip(down, 0, 1))))
        inner = self.offset - self.width * (0.80 - 0.20 * (2 * np.clip(down, 0, 1) - 1) ** 2)
        dome = self.bottom - self.top - 0.05 + 0.45 * np.maximum(across - 0.12, 0) ** 1.3
        apex = 0.9 * np.maximum(across - self.offset, 0) ** 1.5 + 3.0 * np.maximum(self.offset - across, 0) ** 2
        lungs = _soft(outer - across, 0.05) * _soft(across - inner, 0.05)
        lungs *= _soft(self.top + dome - y, 0.06) * _soft(y - self.top - apex, 0.06)
        outline = ((x - self.x0) / self.shoulder) ** 2 + ((y - 0.66) / 0.66) ** 4
        body = _soft(1 - outline, 0.08)
        heart = _soft(1 - ((x - self.x0 - 0.04) / self.heart) ** 2 - ((y - 0.68) / 0.17) ** 2, 0.25)
        ribs = self._ribs(y, x)
        image = 0.06 + body * (self.tissue_level - 0.06) - lungs * body * (self.tissue_level - self.lung_level)
        image += 0.16 * heart * lungs + 0.07 * ribs * lungs + 0.03 * ribs * body * (1 - lungs)
        image += 0.10 * body * np.exp(-(((x - self.x0) / 0.055) ** 2))
        coarse = _noise(rng, self.size, 5.0 * self.scale)
        vessels = _noise(rng, self.size, 1.4 * self.scale)
        near_hilum = np.exp(-(((np.abs(x - self.x0) - 0.12) / 0.12) ** 2) - ((y - 0.5) / 0.28) ** 2)
        return image + body * (0.030 * coarse + (0.012 + 0.022 * near_hilum) * lungs * vessels)

    def _ribs(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        bend = self.rib_bend * (np.abs(x - self.x0) - 0.05) ** 2 - 0.35 * np.abs(x - self.x0)
        wave = np.cos(2 * np.pi * ((y + bend * 0.6) / self.rib_pitch + self.rib_phase))
        return np.clip((wave - 0.1) / 0.9, 0, 1)


def _choose_cells(rng: np.random.Generator, disease: DiseaseConfig, n: int) -> list[tuple[str, str]]:
    weights = np.array([getattr(disease, zone) for _, zone in CELLS])
    drawn = rng.choice(len(CELLS), min(n, len(CELLS)), replace=False, p=weights / weights.sum())
    # a weighted draw has the likely cells first, and the first become findings: place would give them away
    return [CELLS[i] for i in rng.permutation(drawn)]


def _place(rng: np.random.Generator, body: _Body, cells: list, radii: np.ndarray) -> np.ndarray:
    """Centres, B x 2 (y, x) in pixels of the picture, so that blobs overlap as little as jitter allows."""
    middles = np.array([body.cell_centre(cell) for cell in cells]).reshape(-1, 2)
    tries = middles + rng.uniform(-1, 1, (12, len(cells), 2)) * (0.045, 0.050)
    apart = np.linalg.norm(tries[:, :, None] - tries[:, None], axis=-1) * 64 - radii[:, None] - radii
    apart[:, np.arange(len(cells)), np.arange(len(cells))] = np.inf
    nearest = apart.reshape(12, -1).min(axis=1) if len(cells) else np.zeros(12)
    return tries[int(np.argmax(np.minimum(nearest, 1.5)))] * body.size


def _shared_properties(rng: np.random.Generator) -> tuple[bool, bool, bool]:
    """Which of the finding's three properties a look-alike has: none, one or two of them."""
    code = int(rng.integers(7))
    return bool(code & 1), bool(code & 2), bool(code & 4)


def _blob(rng, body: _Body, centre: np.ndarray, radius: float, shares: tuple[bool, bool, bool], contrast: float):
    """One blob.

    Returns:
        What it adds to the picture, which pixels it covers, and the window of the picture that both are for.
    """
    ragged, ring, grainy = shares
    reach = 1.5 * radius * body.scale + 3
    low = np.maximum(np.floor(centre - reach), 0).astype(int)
    high = np.minimum(np.ceil(centre + reach), body.size).astype(int)
    window = (slice(low[0], high[0]), slice(low[1], high[1]))
    dy, dx = (np.mgrid[window] + 0.5 - centre[:, None, None]) / body.scale
    distance, angle = np.hypot(dy, dx), np.arctan2(dy, dx)
    waves = np.arange(4, 9) if ragged else np.arange(2, 4)
    amplitudes = rng.normal(size=len(waves))
    amplitudes *= EDGE * np.sqrt(2) / np.linalg.norm(amplitudes)
    phases = rng.uniform(0, 2 * np.pi, len(waves))
    outline = radius * (1 + sum(a * np.cos(k * angle + p) for k, a, p in zip(waves, amplitudes, phases, strict=True)))
    cover = _soft((outline - distance) / 1.2, 1.0)
    # (distance / outline)^2 is uniform on [0, 1] over a disc, so both profiles have the mean 1
    profile = PROFILE * contrast * (2 * np.clip((distance / outline) ** 2, 0, 1) - 1)
    brightness = 1 + (profile if ring else -profile)
    speckle = _noise(rng, max(distance.shape), 0.7 * body.scale)[: distance.shape[0], : distance.shape[1]]
    if grainy:
        brightness = brightness + GRAIN * contrast * speckle
    return rng.uniform(*BRIGHTNESS) * cover * brightness, cover > 0.5, window


def _scan(rng: np.random.Generator, image: np.ndarray, scanner: ScannerConfig) -> np.ndarray:
    """H x W uint8: what the scanner makes of the body."""
    size = len(image)
    image = np.clip(image, 0, 1) ** scanner.gamma
    image = (image - 0.5) * scanner.gain + 0.5 + scanner.level
    if scanner.blur:
        image = gaussian_filter(image, scanner.blur * size / 64)
    y, x = (np.indices(image.shape) + 0.5) / size - 0.5
    image = image * (1 - scanner.vignette * 2 * (x * x + y * y))
    image = image + scanner.noise * rng.standard_normal(image.shape)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _noise(rng: np.random.Generator, size: int, sigma: float) -> np.ndarray:
    """size x size Gaussian noise of variance 1, correlated over `sigma` pixels."""
    smooth = gaussian_filter(rng.standard_normal((size, size)), sigma, mode="wrap")
    return smooth / max(float(smooth.std()), 1e-6)


def _soft(value: np.ndarray, softness: float) -> np.ndarray:
    """A step at 0 with a slope of that width."""
    return 1 / (1 + np.exp(-np.clip(4 * value / softness, -40, 40)))
