"""Pictures that no video shows, with the statistics of natural ones: what any patch matches by chance."""

from __future__ import annotations

import numpy as np

PICTURES = 32
SIDE = 224


def noise_pictures() -> np.ndarray:
    """uint8 [PICTURES, SIDE, SIDE, 3], always the same: half of them overlapping discs and bars of all sizes (edges,
    corners, flat areas), half fractal noise, every other one of those under a bright even upper part.

    Source: dead leaves and 1/f noise are the two standard models of natural image statistics.
    """
    random = np.random.default_rng(20240229)
    kinds = (_leaves, _leaves, _fractal, _horizon)
    return np.stack([kinds[i % len(kinds)](random, i) for i in range(PICTURES)])


def _leaves(random: np.random.Generator, index: int) -> np.ndarray:
    picture = np.full((SIDE, SIDE, 3), 0.5)
    for _ in range(220 if index % 2 else 80):
        radius = 4 * (90 / 4) ** (random.random() ** 1.6)
        y, x = random.random(2) * SIDE
        colour = random.normal(0.5, 0.2, 3)
        colour = 0.7 * colour.mean() + 0.3 * colour
        slope = random.normal(0, 0.15 / radius, 2)
        round_, angle, thin = random.random() < 0.6, random.random() * np.pi, 0.15 + random.random()
        reach = 1.5 * radius * max(1, thin)
        rows, columns = (slice(max(0, int(c - reach)), int(c + reach) + 1) for c in (y, x))
        dy, dx = np.mgrid[rows, columns].astype(float) - np.array([y, x])[:, None, None]
        part = picture[rows, columns]
        dy, dx = dy[: part.shape[0], : part.shape[1]], dx[: part.shape[0], : part.shape[1]]
        along, across = dy * np.cos(angle) + dx * np.sin(angle), dx * np.cos(angle) - dy * np.sin(angle)
        inside = dy**2 + dx**2 < radius**2 if round_ else (abs(along) < radius) & (abs(across) < radius * thin)
        shade = 1 + slope[0] * dy + slope[1] * dx
        part[inside] = (shade[..., None] * colour)[inside]
    return _levels(picture + random.normal(0, 0.015, (SIDE, SIDE, 1)))


def _fractal(random: np.random.Generator, index: int) -> np.ndarray:
    slope = 1 + 0.4 * random.random()
    grey, warm, cold = _octaves(random, slope), _octaves(random, 1.8), _octaves(random, 1.8)
    grey = 0.45 + 0.2 * grey
    return _levels(np.stack([grey + 0.05 * warm, grey, grey + 0.05 * cold], 2))


def _horizon(random: np.random.Generator, index: int) -> np.ndarray:
    picture = _fractal(random, index) / 255
    rows = int(SIDE * (0.3 + 0.4 * random.random()))
    sky = 0.75 + np.linspace(0, 0.1, rows)[:, None] + 0.02 * _octaves(random, 1.6)[:rows]
    picture[:rows] = sky[..., None]
    return _levels(picture)


def _octaves(random: np.random.Generator, slope: float) -> np.ndarray:
    """Noise with a spectrum of 1 / f^slope, of mean 0 and deviation 1, [SIDE, SIDE]."""
    f = np.fft.fftfreq(SIDE)
    frequency = np.hypot(f[:, None], f)
    frequency[0, 0] = 1 / SIDE
    spectrum = random.normal(size=(SIDE, SIDE)) + 1j * random.normal(size=(SIDE, SIDE))
    noise = np.fft.ifft2(spectrum / frequency**slope).real
    return (noise - noise.mean()) / noise.std()


def _levels(picture: np.ndarray) -> np.ndarray:
    return (picture.clip(0, 1) * 255).round().astype(np.uint8)
