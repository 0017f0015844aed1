"""What would run, and what it costs: `make plan`."""

from __future__ import annotations

import itertools
import math
import statistics
from operator import attrgetter

import torch

from ffrlib import catalogue, jobs, measure, store
from ffrlib.spec import RunSpec, choose
from ffrlib.training import new_model

PLACE = attrgetter("data", "model", "shortcut", "width")  # what the time of an image hangs on
TRAINING_IMAGES = {"digits": 1000, "cifar10": 45000, "cifar100": 45000, "tiny_imagenet": 90000, "stl10": 4500}
# ... of the whole sets, the validation images taken off: see data.load.
MEASURED = {"digits": (500, 297), "cifar10": (10000, 5000), "cifar100": (10000, 5000), "tiny_imagenet": (10000, 10000),
            "stl10": (8000, 500)}  # fmt: skip
# ... test and validation images.


def size(data: str, model: str, shortcut: str, width: float) -> int:
    """MACs of a net for one image of a set."""
    shape = {"digits": (1, 8, 8), "tiny_imagenet": (3, 64, 64), "stl10": (3, 96, 96)}.get(data, (3, 32, 32))
    spec = RunSpec(data, model, shortcut, width=width)
    return measure.macs(new_model(spec, 10), shape)


def images(spec: RunSpec) -> int:
    """How many images an epoch of this run has."""
    return spec.train_size or TRAINING_IMAGES[spec.data]


def work(spec: RunSpec) -> float:
    """A run's cost in training images of the whole net: what it trains on, and its measuring. A net of which a share of
    the MACs is cut costs what is left of them."""
    (test, validation), p = MEASURED[spec.data], spec.pruning
    if p.score == "none":
        return spec.recipe.epochs * images(spec) + jobs.FORWARD * measure.passes(test, validation)
    left = 1 - p.amount if p.budget == "macs_share" else 1
    epochs = p.epochs if p.after == "finetune" else spec.recipe.epochs
    return left * epochs * images(spec) + jobs.FORWARD * (test + 2 * left * (test + validation))


def image_seconds(records: list[dict]) -> dict[tuple, float]:
    """(data, model, shortcut, width) -> seconds of a training image, the median over trainings of whole nets."""
    found: dict[tuple, list[float]] = {}
    for record in records:
        s = record["spec"]
        if s.pruning.score == "none" and s.recipe.epochs and record["status"] == "finished":
            found.setdefault(PLACE(s), []).append(record["provenance"]["seconds"] / s.recipe.epochs / images(s))
    return {place: statistics.median(seconds) for place, seconds in found.items()}


def plan(scale: str, experiment: str | None = None, workers: int = 1, seeds: int = 0, net: str = "",
         device: str = "", root=None) -> str:  # fmt: skip
    """What would run, and how many minutes it takes at the speeds that the records of this scale measured on this kind
    of device, or those of all scales where this one has none; and how many the whole would have taken. `seeds`: as in
    `catalogue.specs`; `net`: only this one; `device`: as in `run.run_specs` (of a GPU's runs, which go side by side, a
    record holds its share of the time, so `workers` counts on a CPU alone); `root`: a store of its own, whose records
    count beside those of the main one.

    A net without a record is priced by its MACs, at the speed of the net nearest in MACs (on the same set, if any).
    """
    device = device or ("cuda" if scale == "paper" and torch.cuda.is_available() else "cpu")
    choose("device", device, ("cpu", "cuda"))
    workers = workers if device == "cpu" else 1

    def speeds(records: list[dict]) -> dict[tuple, float]:
        return image_seconds([r for r in records if (r["provenance"]["device"] == "cpu") == (device == "cpu")])

    known = speeds(store.load_all(scale=scale)[0])
    others = "" if known else ", at the speed of the other scales' records"
    known = known or speeds(store.load_all()[0])
    where = f"{workers} worker(s)" if device == "cpu" else "a GPU as fast as that of the records"
    rate, sizes = dict(known), {place: size(*place) for place in known}
    lines, total, whole, more = [f"scale {scale}, {where}{others * bool(known)}", ""], 0.0, 0.0, ""
    seen = set()
    for name in [experiment] if experiment else catalogue.RUNS:
        minutes, guessed, unknown, count = 0.0, set(), set(), 0
        own = [s for s in catalogue.specs(scale, name, seeds) if net in ("", s.model)]
        for spec in own:
            if spec in seen:
                continue
            seen.add(spec)
            place = PLACE(spec)
            if place not in rate:
                macs, alike = size(*place), [p for p in known if p[0] == spec.data] or known
                near = min(alike, key=lambda p: abs(math.log(sizes[p] / macs)), default=None)
                rate[place] = known[near] * macs / sizes[near] if near else math.nan
            took = work(spec) * rate[place] / 60 / workers
            whole += took
            if store.current(spec) or (root and store.current(spec, root)):
                continue
            count += 1
            if math.isfinite(took):
                minutes += took
                guessed |= {spec.model} if place not in known else set()
            else:
                unknown.add(spec.model)
        total += minutes
        lines.append(f"{name:18} {count:4} of {len(own):4} runs to make, {minutes:7.1f} min")
        asked = [pair for pair in catalogue.unchosen(name, scale) if net in ("", pair[0])]
        groups = itertools.groupby(asked, key=lambda pair: pair[0])
        lacking = "; ".join(f"{net}: {', '.join(arm for _, arm in pairs)}" for net, pairs in groups)
        for what, names in (("priced by MACs", guessed), ("not priced, no record tells the speed", unknown)):
            lines += [f"    {what}: {', '.join(sorted(names))}"] if names else []
        lines += [f"    no strength chosen yet, so not counted: {lacking}"] if lacking else []
        more = " and more" if unknown or lacking else more
    days = f" ({total / 1440:.0f} days)" if total > 2880 else ""
    lines += ["", f"together {total:.1f} min{days}{more}; a run of two experiments is counted in the first.",
              "Scoring channels and training a base again for its cuts come on top."]  # fmt: skip
    if math.isfinite(whole) and whole > total:
        takes = f"{whole / 60:.1f} hours" if whole > 90 else f"{whole:.1f} min"
        lines.insert(-1, f"With what is stored, this list of runs takes {takes}.")
    return "\n".join(lines)
