"""One job: a base run and the cuts that start from its weights, trained, measured and stored."""

from __future__ import annotations

import functools
import hashlib
import math
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch

from ffrlib import checkpoint, data, measure, models, store
from ffrlib.files import results_folder
from ffrlib.models import published
from ffrlib.pruning import budgets, criteria, removal
from ffrlib.spec import ActivationControl, FlowPenalty, Pruning, RunSpec, WeightPenalty
from ffrlib.together import Trained, train_together
from ffrlib.training import Trainer, new_model, precision, stream_seed

PORTABLE = 16 * 2**20  # bytes; a larger checkpoint may stay behind when a lent machine goes back
FORWARD = 0.4  # how much of a training image's time a pass forward takes (measured)


@functools.lru_cache(maxsize=2)
def load_images(name: str, train_size: int, device: str, init: str) -> data.ImageSet:
    """The image set of a run, normalised as its starting weights want it."""
    images = data.load(name, train_size=train_size, device=device)
    if init == "published":
        mean, std = (torch.tensor(v).to(images.mean) for v in (published.PUBLISHED_MEAN, published.PUBLISHED_STD))
        images = replace(images, mean=mean, std=std)
    return images


def images_of(spec: RunSpec, device) -> data.ImageSet:
    return load_images(spec.data, spec.train_size, str(device), spec.init)


def cache_path(kind: str, spec: RunSpec, root: Path | None) -> Path:
    """Where a checkpoint or the weights of a run lie: in the git-ignored `cache/` of the store."""
    record = store.record_path(spec, root)
    folder = (Path(root) if root else results_folder()) / "cache" / kind / spec.scale / record.parent.name
    return folder / f"{record.stem}.npz"


def checkpoints(base: RunSpec, cuts: list[RunSpec], root: Path | None) -> list[Path]:
    """The checkpoints that there are of a base run and its cuts. A cut's name ends in a digest of what it started from:
    on a GPU the same cut twice need not be the same channels."""
    paths = [cache_path("checkpoints", base, root)]
    for path in (cache_path("checkpoints", spec, root) for spec in cuts):
        paths += path.parent.glob(f"{path.stem}-*.npz")
    return [path for path in paths if path.exists()]


def set_threads(spec: RunSpec, root: Path | None, threads: int) -> None:
    """As many threads as the run was begun with, so that it ends bitwise the same; else `threads` (0: as they are)."""
    begun = next(filter(None, map(checkpoint.threads, checkpoints(spec, [spec], root))), 0)
    if begun or threads:
        torch.set_num_threads(begun or threads)


def starting_model(spec: RunSpec, images: data.ImageSet) -> torch.nn.Module:
    """The net before training: drawn from the seed, or the published weights."""
    return published.load(spec.model) if spec.init == "published" else new_model(spec, images.num_classes)


def portable(spec: RunSpec) -> bool:
    """Whether a checkpoint (weights and momentum in float32) is small enough to travel."""
    return 2 * 4 * measure.parameters(new_model(spec, 10)) < PORTABLE


def accuracies(model, images: data.ImageSet, dtype: torch.dtype, *parts: str) -> dict:
    """Accuracies in percent, "<part>_accuracy", for the `parts` of the image set."""
    prepare = (images.mean, images.std, dtype)
    return {f"{part}_accuracy": measure.accuracy(model, *getattr(images, part), *prepare)[0] for part in parts}


def observer(images: data.ImageSet, dtype: torch.dtype):
    """What the training curve shows beside the losses."""
    return lambda model: accuracies(model, images, dtype, "validation")


def trainer_of(spec: RunSpec, images: data.ImageSet, device, model, **more) -> Trainer:
    return Trainer(spec, images, device, model, observe=observer(images, precision(spec, device)), **more)


def needs_training(base: RunSpec, cuts: list[RunSpec], root) -> bool:
    """Whether a base run lacks its record, or the weights that its cuts start from."""
    known = store.lookup(base, root)
    if known is None:
        return True
    return bool(cuts) and known["status"] == "finished" and not cache_path("weights", base, root).exists()


def save(spec: RunSpec, status: str, metrics, device, root, curve=None, seconds=0.0, stacking="one", **more) -> None:
    """Writes the record of a run, with how it was made."""
    digest = images_of(spec, device).digest
    made = store.provenance(spec, device, precision(spec, device), stacking, digest, seconds, **more)
    store.save(spec, status, curve or {}, metrics, made, root)


def closing(images: data.ImageSet) -> float:
    """How many training images take as long as measuring a net."""
    return FORWARD * measure.passes(len(images.test[1]), len(images.validation[1]))


def save_base(spec: RunSpec, trained: Trained, device, stacking: str, root, keep_weights: bool) -> None:
    """Measures a trained net, writes its record unless it has one, keeps its weights where a cut will need them."""
    metrics = {"failure": trained.failure}
    if keep_weights and trained.status == "finished":
        removal.save_pruned(cache_path("weights", spec, root), trained.model)
    if store.lookup(spec, root) is None:
        if trained.status == "finished":
            tap = None if spec.flow.tap == "default" else spec.flow.tap
            metrics = measure.report(trained.model, images_of(spec, device), precision(spec, device), tap)
        more = {"weights": published.CHECKSUMS[spec.model]} if spec.init == "published" else {}
        save(spec, trained.status, metrics, device, root, trained.curve, trained.seconds, stacking, **more)
    cache_path("checkpoints", spec, root).unlink(missing_ok=True)


def plain(spec: RunSpec, **recipe) -> RunSpec:
    """The same run without penalties and cut, with changes of its recipe."""
    bare = replace(spec, weight=WeightPenalty(), flow=FlowPenalty(), activation=ActivationControl(), pruning=Pruning())
    return replace(bare, recipe=replace(spec.recipe, **recipe))


def digest(model: torch.nn.Module) -> str:
    """Eight hex digits of a net's weights and statistics."""
    found = hashlib.sha256()
    for value in model.state_dict().values():
        found.update(value.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:8]


def cut_weights(model, share: float) -> tuple[torch.nn.Module, dict, dict]:
    """Unstructured pruning by magnitude in place: (net, masks that fine-tuning keeps, metrics)."""
    masks = budgets.magnitude_mask(model, share)
    with torch.no_grad():
        for name, kept in masks.items():
            model.get_parameter(name).mul_(kept)
    left = sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
    return model, masks, {"weights_left": left}


def cut_channels(model, spec: RunSpec, images: data.ImageSet, device) -> tuple[torch.nn.Module, None, dict]:
    """Removal of channels by the score and budget of `spec.pruning`: (smaller net, no masks, metrics)."""
    p = spec.pruning
    generator = torch.Generator().manual_seed(stream_seed(spec.seed, "pruning samples"))
    chosen = torch.randperm(len(images.train[1]), generator=generator)[: p.samples].to(device)
    x, y = data.normalise(images.train[0][chosen], images.mean, images.std), images.train[1][chosen]
    shape, loss = tuple(x.shape[1:]), criteria.loss_of(model, x, y)
    low = precision(spec, device) == torch.bfloat16
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16) if low else nullcontext():
        scores = criteria.scores(p.score, model, x, y, spec.seed, p.grouping)
        keep, held_back = budgets.choose_keep(model, scores, p.budget, p.amount, p.scope, p.groups, shape, loss)
    cut = removal.shrink(model, keep)
    return cut, None, measure.pruned_report(model, cut, keep, images) | {"held_back": held_back}


def run_cut(spec: RunSpec, model: torch.nn.Module, device, root=None, deadline=math.inf, threads=0) -> None:
    """Cuts a trained net as `spec.pruning` says, fine-tunes or retrains it, writes the record; pauses at a checkpoint
    where the deadline is too near."""
    set_threads(spec, root, threads)
    start, p, dtype, images = time.monotonic(), spec.pruning, precision(spec, device), images_of(spec, device)
    scratch = p.after == "scratch"
    model = model.to(device, memory_format=torch.channels_last).eval()
    before = accuracies(model, images, dtype, "test")["test_accuracy"]
    try:
        if p.budget == "weight_share":
            cut, masks, metrics = cut_weights(model, p.amount)
        else:
            cut, masks, metrics = cut_channels(model, spec, images, device)
    except budgets.OutOfReach as error:  # a result as well
        save(spec, "unreachable", {"failure": {"reason": str(error)}}, device, root)
        return
    status, curve, seconds, metrics["base_test_accuracy"] = "finished", {}, 0.0, before
    metrics |= {f"cut_{name}": value for name, value in accuracies(cut, images, dtype, "test", "validation").items()}
    if scratch:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(spec.seed, "scratch"))
            cut = models.build(**asdict(cut.layout))
    if scratch or p.epochs:
        recipe = {} if scratch else {"epochs": p.epochs, "lr": p.lr}
        trainer = trainer_of(plain(spec, **recipe), images, device, cut, masks=masks)
        path, begun = cache_path("checkpoints", spec, root), time.monotonic()
        path = path.with_stem(f"{path.stem}-{digest(cut)}")
        trained = train_together([trainer], [path], deadline=deadline, must_finish=not portable(spec))[0]
        if trained.status == "paused":
            return
        cut, status, curve = trained.model, trained.status, trained.curve
        seconds = trained.seconds - (time.monotonic() - begun)  # with those of earlier calls
    if status == "finished":
        metrics |= accuracies(cut, images, dtype, "test", "validation")
    else:
        metrics["failure"] = trained.failure
    save(spec, status, metrics, device, root, curve, time.monotonic() - start + seconds)
    for path in checkpoints(spec, [spec], root):
        path.unlink()


def run_cuts(base: RunSpec, cuts: list[RunSpec], device, root, deadline: float, threads=0) -> None:
    """The cuts of one base whose record and weights are stored; a base that diverged cannot be cut, and says so. One
    that raises ValueError (a score that is no number) does not stop the others: the first is raised at the end."""
    record, errors = store.lookup(base, root), []
    for spec in cuts:
        if record["status"] != "finished":
            save(spec, "diverged", {"failure": record["metrics"].get("failure")}, device, root)
        elif time.monotonic() < deadline:
            model = removal.load_pruned(cache_path("weights", base, root))
            try:
                run_cut(spec, model, device, root, deadline, threads)
            except ValueError as error:
                errors.append(error)
    if errors:
        raise errors[0]


def run_job(base: RunSpec, cuts: list[RunSpec], root=None, device="cpu", threads=0, deadline=math.inf,
            keep_weights=False) -> None:  # fmt: skip
    """One base run (unless it is stored) and its cuts, one after the other, as far as time allows. `keep_weights`: for
    cuts that come later."""
    if time.monotonic() >= deadline:
        return
    set_threads(base, root, threads)
    if needs_training(base, cuts, root):
        images = images_of(base, device)
        trainer = trainer_of(base, images, device, starting_model(base, images))
        path = cache_path("checkpoints", base, root)
        trained = train_together([trainer], [path], deadline=deadline, must_finish=not portable(base),
                                 closing=closing(images))[0]  # fmt: skip
        if trained.status == "paused":
            return
        save_base(base, trained, device, "one", root, keep_weights or bool(cuts))
    run_cuts(base, cuts, device, root, deadline, threads)
