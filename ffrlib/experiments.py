"""What every experiment notebook does around its runs: choose them, read them back, check them, keep the figures.

With FFR_SAMPLE=1 an experiment makes a small sample of its runs and leaves tables and figures alone: enough to see that
the notebook works and that its records come out as committed.
"""

from __future__ import annotations

import os

import pandas as pd
from IPython.display import Image

from ffrlib import catalogue, frames, saving, store, tables, verdicts
from ffrlib.spec import RunSpec, key, require


def sampling() -> bool:
    """True where only a sample is asked for (FFR_SAMPLE=1)."""
    return os.environ.get("FFR_SAMPLE") == "1"


def needed(name: str, scale: str, seeds: int = 0) -> list[RunSpec]:
    """The runs of one experiment, `seeds` of each (0: as many as the scale asks for), or a sample of them.

    The sample: two seeds of the first run (the plain net) and of the one in the middle of the list. With
    FFR_AHEAD=<scale>: the runs of all experiments. Raises ValueError for an unknown experiment or scale, or a negative
    number of seeds.
    """
    require(seeds >= 0, "seeds", seeds, "0 (the scale's own number) or more")
    if os.environ.get("FFR_AHEAD") == scale and not sampling():  # one pool, started once, no core idle at its end
        return catalogue.specs(scale, seeds=seeds)
    specs = catalogue.specs(scale, name, seeds)
    if not sampling():
        return specs
    keys, two = list(dict.fromkeys(key(spec) for spec in specs)), sorted({spec.seed for spec in specs})[:2]
    sample = {keys[0], keys[len(keys) // 2]}
    return [spec for spec in specs if key(spec) in sample and spec.seed in two]


def records(name: str, scale: str) -> list[dict]:
    """All stored records of an experiment's runs, with any seed. Raises ValueError that names each damaged file."""
    found, problems = store.load_all(scale=scale)
    if problems:
        raise ValueError("; ".join(problem.why for problem in problems))
    return tables.counted(found, scale, name)


def verdict_table(name: str, scale: str) -> pd.DataFrame:
    """What the protocol's rules say of an experiment's claims: a row a claim and net, effects in points."""
    claims = catalogue.CLAIMS.get(name, ())
    found = verdicts.verdicts(store.load_all(scale=scale)[0])
    found = [v | (v["effect"] or {"part": ""}) for v in found if v["claim"] in claims and v["scale"] == scale]
    shown = {"claim": "claim", "net": "net", "verdict": "verdict", "part": "weakest part", "mean": "effect (points)",
             "low": "low", "high": "high", "runs_needed": "more runs needed"}  # fmt: skip
    return pd.DataFrame(found, columns=list(shown)).rename(columns=shown)


def verify(specs: list[RunSpec], summary, records: list[dict], shown: dict[str, pd.DataFrame]) -> list[RunSpec]:
    """What holds whatever the claims turn out to be; returns the runs without a record. Raises AssertionError.

    `summary`: what `run_specs(specs)` returned; `shown`: the experiment's tables.
    """
    missing = [spec for spec in specs if store.lookup(spec) is None]
    assert len(missing) <= summary.missing, "a run neither has a record nor was reported as not run"
    frame = frames.frame_of([record for record in records if record["status"] == "finished"])
    assert {record["scale"] for record in records} <= {spec.scale for spec in specs}, "scales are mixed"
    for names, most in (("accuracy$", 100), ("(sparsity|share|channels|kernels)$", 1)):
        numbers = frame.filter(regex=names).melt().dropna()
        assert numbers["value"].between(0, most).all(), numbers[~numbers["value"].between(0, most)]
    for title, table in shown.items():
        if {"n", "test_accuracy"} <= set(table):
            assert ((table["n"] == 0) == (table["test_accuracy"] == tables.NOT_RUN)).all(), title
    return missing


def show(fig, alt: str, name: str = "", scale: str = "") -> Image | None:
    """The picture for a notebook; also kept as `name` in the figures of `scale`, unless only a sample was run."""
    if os.environ.get("FFR_PICTURES") == "never":  # a replication compares numbers
        return None
    if name and not sampling():
        saving.save(fig, name, scale, alt)
    return Image(saving.png(fig), alt=alt)
