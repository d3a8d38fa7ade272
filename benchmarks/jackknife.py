"""How often row L8's intervals cover: clouds of known make drawn again and again, against the mean of their estimates.

`python benchmarks/jackknife.py [CLOUDS]` prints, per kind of cloud, number of points and metric, the share of clouds whose
interval (estimate plus and minus 1.96 delete-d jackknife errors) holds the mean estimate of all clouds, the standard
deviation of the estimates, the mean error, and the share that the study's 5th to 95th percentile of subsamples holds.
"""

import sys
import warnings

import numpy as np
from actlake.analyze.residual.geometry import METRICS, geometry

WIDTH, DRAWS, SHARE = 48, 100, 0.8


def flat(n: int, rng: np.random.Generator) -> np.ndarray:
    """Five dimensions alike, and a little noise."""
    base = np.linalg.qr(np.random.default_rng(1).normal(size=(WIDTH, 5)))[0]
    return rng.normal(size=(n, 5)) @ base.T + 0.01 * rng.normal(size=(n, WIDTH))


def decaying(n: int, rng: np.random.Generator) -> np.ndarray:
    """Variances that fall as a power of their place, as those of residuals do."""
    return rng.normal(size=(n, WIDTH)) * np.arange(1, WIDTH + 1) ** -0.75


def clustered(n: int, rng: np.random.Generator) -> np.ndarray:
    """Four clusters."""
    centres = 2 * np.random.default_rng(2).normal(size=(4, WIDTH))
    return centres[rng.integers(0, 4, n)] + rng.normal(size=(n, WIDTH)) * np.arange(1, WIDTH + 1) ** -0.5


KINDS = {"flat": flat, "decaying": decaying, "clustered": clustered}


def coverage(kind: str, points: int, clouds: int, draws: int = DRAWS) -> dict[str, tuple[float, float, float, float]]:
    """Metric -> (coverage, standard deviation of estimates, mean error, coverage of the subsamples' percentiles)."""
    estimates, errors, low, high = (np.empty((clouds, len(METRICS))) for _ in range(4))
    b = round(SHARE * points)
    for cloud in range(clouds):
        x = KINDS[kind](points, np.random.default_rng(1000 + cloud))
        found = geometry(x[:, None], draws=draws, share=SHARE)
        for place, name in enumerate(METRICS):
            whole, parts = found[name][0, 0], found[name][1:, 0]
            estimates[cloud, place] = whole
            errors[cloud, place] = np.sqrt(b / (points - b)) * np.std(parts, ddof=1)
            low[cloud, place], high[cloud, place] = np.quantile(parts, [0.05, 0.95])
    mean = estimates.mean(axis=0)
    holds = (np.abs(estimates - mean) <= 1.96 * errors + 1e-9).mean(axis=0)
    plain = ((low <= mean) & (mean <= high)).mean(axis=0)
    spread = estimates.std(axis=0, ddof=1)
    return {n: tuple(map(float, v)) for n, *v in zip(METRICS, holds, spread, errors.mean(axis=0), plain, strict=True)}  # type: ignore[misc]


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    clouds = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    print(f"{'cloud':10} {'points':>6} {'metric':22} {'covers':>7} {'sd':>9} {'error':>9} {'5-95 %':>7}")
    for kind in KINDS:
        for points in (40, 120, 240):
            for name, (holds, spread, error, plain) in coverage(kind, points, clouds).items():
                print(
                    f"{kind:10} {points:6} {name:22} {holds:7.2f} {spread:9.3g} {error:9.3g} {plain:7.2f}", flush=True
                )


if __name__ == "__main__":
    main()
