"""Choose the strengths of the catalogue's arms: one seed, validation images only, by the procedure of docs/protocol.md.

    python benchmarks/pilot.py --scale quick --net digits_cnn [--arms l1 group_lasso both] [--count 5]

An arm's grid is centred where its first push on the weights equals that of L1 at `--centre`, and moves by factors of 3.
Kept are `count` strengths from the one that first reaches 30 % of weights below 1e-3 up to the one that reaches 90 % or
has lost five points of validation accuracy. The arms of FFR and network slimming, which push no weight directly, take
the `count` largest strengths that lose less than five points. At scale "paper" the pilot trains the short recipe below
and scales the strengths to equal push over the run: strength * sum of learning rates is the same in both.
"""

import argparse
import json
from dataclasses import replace

import torch

from ffrlib import catalogue, measure
from ffrlib.files import REPOSITORY, write_atomically
from ffrlib.jobs import load_images
from ffrlib.regularizers.strength import matched_strength
from ffrlib.spec import CRITERIA, Recipe, RunSpec
from ffrlib.together import train_together
from ffrlib.training import Trainer, learning_rates, new_model, precision

SHORT = {"train_size": 20000, "recipe": Recipe(epochs=15, lr=0.05, schedule="one_cycle", augment="crop_flip")}
FILE = REPOSITORY / "data" / "strengths.json"


def total_rate(spec: RunSpec, images: int) -> float:
    """Sum of the learning rates of a run."""
    return learning_rates(spec.recipe, images // spec.recipe.batch_size * spec.recipe.epochs).sum()


def arm_spec(base: RunSpec, arm: str, strength: float) -> RunSpec:
    return (catalogue.flow_arm if arm in catalogue.FLOW_ARMS else catalogue.weight_arm)(base, arm, strength)


def try_out(specs: list[RunSpec], images, device: str, together: int) -> list[tuple[float, float, str]]:
    """(share of weights below 1e-3, validation accuracy, status) of each run."""
    found = []
    for k in range(0, len(specs), together):
        for done in train_together([Trainer(s, images, device) for s in specs[k : k + together]]):
            dtype = precision(specs[0], device)
            accuracy = measure.accuracy(done.model, *images.validation, images.mean, images.std, dtype)[0]
            found.append((measure.sparsity(done.model)["weights"], accuracy, done.status))
    return found


def choose_strengths(strengths: list[float], found, plain: float, count: int, by_weights: bool) -> list[float]:
    """`count` strengths, ascending, by the rule in the module's docstring."""
    alive = [k for k, (_, accuracy, status) in enumerate(found) if status == "finished" and accuracy > plain - 5]
    last = max(alive, default=0)
    if not by_weights:
        return strengths[max(0, last - count + 1) : last + 1]
    first = next((k for k, (share, _, _) in enumerate(found) if share >= 0.3), len(found) - 1)
    full = next((k for k, (share, _, _) in enumerate(found) if share >= 0.9), len(found) - 1)
    end = min(full, last + 1, len(found) - 1)
    first = max(0, min(first, end - count + 1))
    places = sorted({round(first + (end - first) * k / max(count - 1, 1)) for k in range(count)})
    return [strengths[k] for k in places]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", default="quick")
    parser.add_argument("--net", default="digits_cnn")
    parser.add_argument("--arms", nargs="*", default=[*CRITERIA, *catalogue.FLOW_ARMS, "network_slimming"])
    parser.add_argument("--centre", type=float, default=3e-4, help="L1's strength at the centre")
    parser.add_argument("--push", type=float, default=0.03, help="the centre of FFR's arms, 100 times that of slimming")
    parser.add_argument("--steps", type=int, nargs=2, default=(-3, 5), help="powers of 3 around the centre")
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--together", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    goal = catalogue.BASES[given.scale][given.net]
    base, scaling = goal, 1.0
    images = load_images(base.data, base.train_size, given.device, base.init)
    if given.scale == "paper":
        base = replace(goal, **SHORT)
        scaling = total_rate(base, 20000) / total_rate(goal, len(images.train[1]))
        images = load_images(base.data, base.train_size, given.device, base.init)
    torch.set_num_threads(1)
    plain = try_out([base], images, given.device, 1)[0][1]
    table = json.loads(FILE.read_text())
    model = new_model(base, images.num_classes)
    for arm in given.arms:
        centre = given.push / (100 if arm == "network_slimming" else 1)
        if arm in CRITERIA:
            centre = matched_strength(model, arm, given.centre)
        strengths = [float(f"{centre * 3.0**k:.2g}") for k in range(given.steps[0], given.steps[1] + 1)]
        found = try_out([arm_spec(base, arm, s) for s in strengths], images, given.device, given.together)
        kept = choose_strengths(strengths, found, plain, given.count, arm in CRITERIA)
        kept = [float(f"{s * scaling:.2g}") for s in kept]
        table.setdefault(given.scale, {}).setdefault(given.net, {})[arm] = kept
        print(f"{arm} (plain {plain:.1f}) keeps {kept}")
        for strength, (share, accuracy, status) in zip(strengths, found):
            print(f"    {strength:8.2g}: {100 * share:3.0f} % below 1e-3, {accuracy:.1f} {status}", flush=True)
        write_atomically(FILE, json.dumps(table, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
