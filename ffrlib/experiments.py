"""What every experiment notebook does around its runs: choose them, read them back, keep the figures.

With FFR_SAMPLE=1 an experiment makes a small sample of its runs and leaves tables and figures alone: enough to see that
the notebook works and that its records come out as committed.
"""

from __future__ import annotations

import os

from IPython.display import Image

from ffrlib import catalogue, figures, store
from ffrlib.spec import RunSpec, key, require


def sampling() -> bool:
    """True where only a sample is asked for (FFR_SAMPLE=1)."""
    return os.environ.get("FFR_SAMPLE") == "1"


def needed(name: str, scale: str, seeds: int = 0) -> list[RunSpec]:
    """The runs of one experiment, `seeds` of each (0: as many as the scale asks for), or a sample of them.

    The sample: two seeds of the first run (the plain net) and of the one in the middle of the list. Raises ValueError
    for an unknown experiment or scale, or a negative number of seeds. With FFR_AHEAD=<scale>:
    the runs of all experiments.
    """
    require(seeds >= 0, "seeds", seeds, "0 (the scale's own number) or more")
    if os.environ.get("FFR_AHEAD") == scale and not sampling():  # one pool, started once, no core idle at its end
        return catalogue.specs(scale, seeds=seeds)
    specs = catalogue.specs(scale, name, seeds)
    keys = list(dict.fromkeys(key(spec) for spec in specs))
    sample = {keys[0], keys[len(keys) // 2]}
    return [spec for spec in specs if key(spec) in sample and spec.seed < 2] if sampling() else specs


def records(name: str, scale: str) -> list[dict]:
    """All stored records of an experiment's runs, with any seed. Raises ValueError that names each damaged file."""
    found, problems = store.load_all(scale=scale)
    if problems:
        raise ValueError("; ".join(problem.why for problem in problems))
    keys = {key(spec) for spec in catalogue.specs(scale, name, seeds=1)}
    return [record for record in found if record["key"] in keys]


def show(fig, alt: str, name: str = "", scale: str = "") -> Image | None:
    """The picture for a notebook; also kept as `name` in the figures of `scale`, unless only a sample was run."""
    if os.environ.get("FFR_PICTURES") == "never":  # a replication compares numbers
        return None
    if name and not sampling():
        figures.save(fig, name, scale, alt)
    return Image(figures.png(fig), alt=alt)
