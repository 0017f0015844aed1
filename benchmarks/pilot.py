"""Choose the strengths of the catalogue's arms: one seed, validation images only, by the procedure of docs/protocol.md.

    python benchmarks/pilot.py --scale quick --net digits_cnn [--arms l1 group_lasso both] [--count 5]
    python benchmarks/pilot.py --scale laptop --net alexnet_small --count 3 --epochs 5
    python benchmarks/pilot.py --scale paper --net vgg16 --device cuda --missing --minutes 8

An arm's search starts where its first push on the weights equals that of L1 at `--centre`, and walks by factors of 3:
up until the arm has 90 % of weights below 1e-3 or has lost five points of validation accuracy, down until it has fewer
than 30 %. Kept are `count` strengths of that range. The arms of FFR and network slimming, which push no weight
directly, walk down until they lose less than five points, and keep the `count` largest strengths that do; so does
any arm of which one strength alone is wanted. With
`--epochs` or `--train-size` (and always at scale "paper") the pilot trains a shorter recipe and scales the strengths to
equal push over the run: strength * sum of learning rates is the same in both. Without, each run is the catalogue's own
(seed 0): it is made in a store of its own, and the records of the kept strengths are copied to results/.
"""

import argparse
import json
import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ffrlib import catalogue, measure, store
from ffrlib.files import REPOSITORY, write_atomically
from ffrlib.jobs import load_images, run_job, starting_model
from ffrlib.regularizers.weight import matched_strength
from ffrlib.spec import CRITERIA, Recipe, RunSpec, choose
from ffrlib.together import train_together
from ffrlib.training import Trainer, learning_rates, precision

SHORT = {"train_size": 20000, "recipe": Recipe(epochs=15, lr=0.05, schedule="one_cycle", augment="crop_flip")}
FILE = REPOSITORY / "data" / "strengths.json"
PILOTS = REPOSITORY / "build" / "pilot"
METRICS = ("unstructured_sparsity", "validation_accuracy")


def total_rate(spec: RunSpec, images: int) -> float:
    """Sum of the learning rates of a run."""
    return learning_rates(spec.recipe, images // spec.recipe.batch_size * spec.recipe.epochs).sum()


def arm_spec(base: RunSpec, arm: str, strength: float) -> RunSpec:
    return (catalogue.flow_arm if arm in catalogue.FLOW_ARMS else catalogue.weight_arm)(base, arm, strength)


def try_out(spec: RunSpec, images, device: str) -> tuple[float, float, str]:
    """(share of weights below 1e-3, validation accuracy, status) of a run."""
    done = train_together([Trainer(spec, images, device, starting_model(spec, images))])[0]  # published weights too
    prepare = (images.mean, images.std, precision(spec, device))
    accuracy = measure.accuracy(done.model, *images.validation, *prepare)[0]
    return measure.sparsity(done.model)["weights"], accuracy, done.status


def stored(spec: RunSpec) -> tuple[float, float, str]:
    """The same of one of the catalogue's runs, with its record in `PILOTS`."""
    if store.lookup(spec, PILOTS) is None:
        run_job(spec, [], PILOTS, "cpu", 1)
    record = store.lookup(spec, PILOTS)
    return tuple(record["metrics"].get(m, 0.0) for m in METRICS) + (record["status"],)


def walk(run, centre: float, plain: float, count: int, by_weights: bool, reach: int = 6) -> dict[float, tuple]:
    """{strength: what `run(strength)` found}, ascending: what the rule in the module's docstring tries."""
    found = {}

    def sound(k: int) -> bool:
        return found[k][2] == "finished" and found[k][1] > plain - 5

    def look(k: int) -> int:
        share, accuracy, status = found[k] = run(strength := float(f"{centre * 3.0**k:.2g}"))
        print(f"    {strength:8.2g}: {100 * share:3.0f} % below 1e-3, {accuracy:.1f} {status}", flush=True)
        return k

    k = look(0)
    while k < reach and sound(k) and not (by_weights and found[k][0] >= 0.9):
        k = look(k + 1)
    if k == reach and sound(k) and not (by_weights and found[k][0] >= 0.9):
        print(
            f"    stopped {reach} steps above the centre: under 5 points lost{', under 90 % below 1e-3' * by_weights}"
        )
    k = 0
    few = lambda: sum(map(sound, found)) < max(1, count - 1)  # noqa: E731  of several, one beyond the sound ones is kept
    while k > -reach and (found[k][0] >= 0.3 or few() if by_weights else not sound(k)):
        k = look(k - 1)
    if not by_weights:  # weaker ones than one that is sound are sound
        k = max(k for k in found if sound(k)) if any(map(sound, found)) else k
        found |= {j: (0.0, plain, "finished") for j in range(k - count + 1, k) if j not in found}
    return {float(f"{centre * 3.0**k:.2g}"): found[k] for k in sorted(found)}


def choose_strengths(strengths: list[float], found, plain: float, count: int, by_weights: bool) -> list[float]:
    """`count` strengths, ascending, by the rule in the module's docstring."""
    alive = [k for k, (_, accuracy, status) in enumerate(found) if status == "finished" and accuracy > plain - 5]
    last = max(alive, default=0)
    if not by_weights or count == 1:
        return strengths[max(0, last - count + 1) : last + 1]
    first = next((k for k, (share, _, _) in enumerate(found) if share >= 0.3), len(found) - 1)
    full = next((k for k, (share, _, _) in enumerate(found) if share >= 0.9), len(found) - 1)
    end = min(full, last + 1, len(found) - 1)
    first = max(0, min(first, end - count + 1))
    places = sorted({round(first + (end - first) * k / max(count - 1, 1)) for k in range(count)})
    return [strengths[k] for k in places]


ARMS = [*CRITERIA, *catalogue.FLOW_ARMS, "network_slimming"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", default="quick")
    parser.add_argument("--net", default="digits_cnn")
    parser.add_argument("--arms", nargs="*", default=ARMS)
    parser.add_argument("--centre", type=float, default=3e-4, help="L1's strength at the centre")
    parser.add_argument("--push", type=float, default=0.03, help="the centre of FFR's arms, 100 times that of slimming")
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=0, help="of a shorter recipe; 0: the scale's own")
    parser.add_argument("--train-size", type=int, default=0, help="of a shorter recipe; 0: the scale's own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--missing", action="store_true", help="only arms without strengths: to go on after a break")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no arm after this many")
    given, begun = parser.parse_args(), time.monotonic()
    choose("--scale", given.scale, catalogue.BASES)
    choose("--net", given.net, catalogue.BASES[given.scale])
    for arm in given.arms:
        choose("arm", arm, ARMS)
    known = [arm for arm in given.arms if catalogue.strengths(given.scale, given.net, arm)]
    arms = [arm for arm in given.arms if not (given.missing and arm in known)]
    if not arms:
        return print("every arm has its strengths")
    base = goal = catalogue.BASES[given.scale][given.net]
    if given.scale == "paper":
        base = replace(goal, **SHORT)
    base = replace(base, train_size=given.train_size or base.train_size,
                   recipe=replace(base.recipe, epochs=given.epochs or base.recipe.epochs))  # fmt: skip
    images, every = (load_images(s.data, s.train_size, given.device, s.init) for s in (base, goal))
    scaling = total_rate(base, len(images.train[1])) / total_rate(goal, len(every.train[1]))
    torch.set_num_threads(1)
    run = stored if base == goal and given.device == "cpu" else partial(try_out, images=images, device=given.device)
    plain = run(base)[1]
    model = starting_model(base, images)
    for arm in arms:
        if time.monotonic() - begun > 60 * given.minutes:
            print(f"no time left for {arm}: call again with --missing")
            continue
        centre = given.push / (100 if arm == "network_slimming" else 1) / scaling
        if arm in CRITERIA:
            centre = matched_strength(model, arm, given.centre / scaling)
        print(f"{arm}: plain {plain:.1f}; strengths of the pilot, times {scaling:.3g} in the runs", flush=True)
        found = walk(lambda s, arm=arm: run(arm_spec(base, arm, s)), centre, plain, given.count, arm in CRITERIA)
        kept = choose_strengths(list(found), list(found.values()), plain, given.count, arm in CRITERIA)
        kept = [float(f"{s * scaling:.2g}") for s in kept]
        for spec in (base, *(arm_spec(base, arm, s) for s in kept)) if run is stored else ():
            if record := store.lookup(spec, PILOTS):  # a strength that was taken for sound unseen has none
                write_atomically(store.record_path(spec), Path(record["path"]).read_bytes())
        print(f"{arm} keeps {kept}", flush=True)
        table = json.loads(FILE.read_text())  # read again: another pilot may have written meanwhile
        table.setdefault(given.scale, {}).setdefault(given.net, {})[arm] = kept
        write_atomically(FILE, json.dumps(table, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
