"""From the differences of a claim's parts to verdicts: the tests and intervals of docs/protocol.md."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy import stats

from ffrlib import tables
from ffrlib.claims import Part

LEVEL, PAIRS, MOST = 0.025, 5, 100  # one-sided level of a test, fewest pairs that decide, most seeds worth naming


def p_value(differences, boundary: float, above: bool) -> float:
    """One-sided t test: small where the mean is `above` (else below) `boundary`. Without spread 0 or 1, by the side."""
    x = (np.asarray(differences, dtype=float) - boundary) * (1 if above else -1)
    if len(x) < 2 or np.ptp(x) < 1e-9:
        return 0.0 if len(x) > 1 and x[0] > 1e-9 else 1.0
    return float(stats.ttest_1samp(x, 0, alternative="greater").pvalue)


def holm(p_values: list[float]) -> list[float]:
    """Holm's adjusted p values (Scandinavian Journal of Statistics 6, 1979), in the order given."""
    ascending = pd.Series(p_values, dtype=float).sort_values()
    adjusted = (ascending * np.arange(len(p_values), 0, -1)).cummax().clip(upper=1)
    return adjusted.sort_index().tolist()


def seeds_needed(x: np.ndarray, limits: tuple[float, float], parts: int) -> int:
    """Seeds that an undecided part still needs: up to 5, then to pass the first step of Holm's correction at the
    present mean and spread; `MOST` + 1 stands for more than `MOST`."""
    if len(x) < PAIRS:
        return PAIRS - len(x)
    distance, spread = abs(x.mean() - limits[0 if x.mean() >= limits[1] else 1]), x.std(ddof=1)
    n = len(x) + np.arange(1, MOST + 1)
    enough = distance * np.sqrt(n) > spread * stats.t.isf(LEVEL / parts, n - 1)
    return int(enough.argmax()) + 1 if enough.any() else MOST + 1


def judge(parts: list[Part]) -> list[dict]:
    """Each part's mean, interval, n, Holm-corrected verdict and the seeds it still needs (0 where none would help)."""
    up = holm([p_value(p.differences, p.limits[0], True) for p in parts])
    down = holm([p_value(p.differences, p.limits[1], False) for p in parts])
    out = []
    for part, p_up, p_down in zip(parts, up, down):
        x = part.differences.to_numpy(dtype=float)
        mean, low, high = (None if math.isnan(v) else round(v, 3) for v in tables.interval(x))
        verdict, needed = "undecided", 0
        if len(x) >= PAIRS and part.step and (abs(x) <= part.step + 1e-6).all():
            needed = 0  # nothing that the measure can see: more seeds do not help
        elif len(x) >= PAIRS and p_up < LEVEL and x.mean() >= part.limits[1]:
            verdict = "undecided" if part.only_refutes else "supported"
        elif len(x) >= PAIRS and p_down < LEVEL:
            verdict = "not supported"
        else:
            needed = seeds_needed(x, part.limits, len(parts))
        out.append({"part": part.name, "decides": part.decides, "verdict": verdict, "at_least": part.limits[1],
                    "mean": mean, "low": low, "high": high, "n": len(x), "across": part.mixed,
                    "within": round(float(np.mean(part.within)), 3) if part.mixed and part.within else None,
                    "p_above": f"{p_up:.2g}", "p_below": f"{p_down:.2g}", "seeds_needed": needed,
                    "records": [k for k in part.keys if k and k[0] != "?"]})  # fmt: skip
    return out
