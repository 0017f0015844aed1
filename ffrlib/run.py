"""Run what has no record yet: on CPU cores as single-threaded processes, on a GPU several at once, within a time limit.

    python -m ffrlib.run --scale paper --minutes 9 --out DIR    the next runs of the catalogue, by priority
    python -m ffrlib.run --plan --scale laptop                  what would run, and how many minutes
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import os
import signal
import sys
import tarfile
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ffrlib import data, measure, models, store
from ffrlib.files import results_folder
from ffrlib.models import published
from ffrlib.pruning import budgets, criteria, removal
from ffrlib.spec import ActivationControl, FlowPenalty, Pruning, RunSpec, WeightPenalty, base_of, choose, key
from ffrlib.training import Trained, Trainer, new_model, precision, stream_seed, train_together

TOGETHER = {"vgg16": 4, "vgg19": 4, "resnet56": 6, "resnet110": 4, "resnet18_tiny": 2, "alexnet_small": 16}  # on one GPU; others: 8
COMPILED = ("vgg16", "vgg19")  # on a GPU, from 50 epochs on: 20 s of compiling win 25 % of the time (ResNets: 10 %, not won back)
PORTABLE = 16 * 2**20  # bytes; a larger checkpoint may stay behind when a lent machine goes back
RETRIES = 2  # after worker processes were killed, without a run finished in between


@dataclass(frozen=True)
class Summary:
    """What a call did: numbers of records reused, trained, diverged (among the trained), left for another time."""

    reused: int = 0
    trained: int = 0
    diverged: int = 0
    missing: int = 0

    def __str__(self) -> str:
        text = f"{self.reused} records reused, {self.trained} trained"
        text += f" ({self.diverged} of them diverged)" if self.diverged else ""
        return text + (f", {self.missing} not run" if self.missing else "")


@functools.lru_cache(maxsize=2)
def load_images(name: str, train_size: int, device: str, init: str) -> data.ImageSet:
    """The image set of a run, normalised as its starting weights want it."""
    images = data.load(name, train_size=train_size, device=device)
    if init == "published":
        like = {"dtype": images.mean.dtype, "device": images.mean.device}
        images = replace(images, mean=torch.tensor(published.PUBLISHED_MEAN, **like), std=torch.tensor(published.PUBLISHED_STD, **like))
    return images


def cache_path(kind: str, spec: RunSpec, root: Path | None) -> Path:
    """Where a checkpoint or the weights of a run lie: in the git-ignored `cache/` of the store."""
    record = store.record_path(spec, root)
    return (Path(root) if root else results_folder()) / "cache" / kind / spec.scale / record.parent.name / f"{record.stem}.npz"


def starting_model(spec: RunSpec, images: data.ImageSet) -> torch.nn.Module:
    """The net before training: drawn from the seed, or the published weights."""
    return published.load(spec.model) if spec.init == "published" else new_model(spec, images.num_classes)


def plain(spec: RunSpec, **recipe) -> RunSpec:
    """The same run without penalties and cut, with changes of its recipe."""
    return replace(spec, weight=WeightPenalty(), flow=FlowPenalty(), activation=ActivationControl(), pruning=Pruning(),
                   recipe=replace(spec.recipe, **recipe))  # fmt: skip


def observer(images: data.ImageSet, dtype: torch.dtype):
    """What the training curve shows beside the losses."""
    return lambda model: {"validation_accuracy": measure.accuracy(model, *images.validation, images.mean, images.std, dtype)[0]}


def save_base(spec: RunSpec, trained: Trained, images: data.ImageSet, device, stacking: str, root, keep_weights: bool) -> None:
    """Measures a trained net, writes its record unless it has one, and keeps its weights where a cut will need them."""
    dtype = precision(spec, device)
    if keep_weights and trained.status == "finished":
        removal.save_pruned(cache_path("weights", spec, root), trained.model)
    if not store.record_path(spec, root).exists():
        tap = spec.flow.tap if spec.flow.tap != "default" else None
        metrics = measure.report(trained.model, images, dtype, tap) if trained.status == "finished" else {"failure": trained.failure}
        more = {"weights": published.CHECKSUMS[spec.model]} if spec.init == "published" else {}
        made = store.provenance(spec, device, dtype, stacking, images.digest, trained.seconds, **more)
        store.save(spec, trained.status, trained.curve, metrics, made, root)
    cache_path("checkpoints", spec, root).unlink(missing_ok=True)


def run_pruned(spec: RunSpec, model: torch.nn.Module, base_metrics: dict, images: data.ImageSet, device, root=None,
               deadline: float = math.inf) -> None:  # fmt: skip
    """Cuts a trained net as `spec.pruning` says, fine-tunes or retrains it, writes the record, unless time runs out."""
    start, p, dtype = time.monotonic(), spec.pruning, precision(spec, device)
    model = model.to(device, memory_format=torch.channels_last).eval()
    test = lambda net: measure.accuracy(net, *images.test, images.mean, images.std, dtype)[0]  # noqa: E731
    validate = lambda net: measure.accuracy(net, *images.validation, images.mean, images.std, dtype)[0]  # noqa: E731
    generator = torch.Generator().manual_seed(stream_seed(spec.seed, "pruning samples"))
    chosen = torch.randperm(len(images.train[1]), generator=generator)[: p.samples].to(device)
    x = data.normalise(images.train[0][chosen], images.mean, images.std, torch.float32)
    y = images.train[1][chosen]
    metrics, masks = {"base_test_accuracy": base_metrics["test_accuracy"]}, None
    if p.budget == "weight_share":
        masks = budgets.magnitude_mask(model, p.amount)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in masks:
                    parameter.mul_(masks[name])
        cut = model
        metrics |= {"weights_left": sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())}
    else:
        scores = criteria.scores(p.score, model, x, y, seed=spec.seed)
        keep, held_back = budgets.choose_keep(model, scores, p.budget, p.amount, p.scope, p.groups, image_shape=tuple(x.shape[1:]),
                                              loss=criteria.loss_of(model, x, y))  # fmt: skip
        cut = removal.shrink(model, keep)
        metrics |= measure.pruned_report(model, cut, keep, images) | {"held_back": held_back}
    metrics |= {"cut_test_accuracy": test(cut), "cut_validation_accuracy": validate(cut)}
    small = plain(spec, epochs=p.epochs, lr=p.lr) if p.after == "finetune" and p.epochs else plain(spec)
    status, curve = "finished", {}
    if p.after == "scratch":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(spec.seed, "scratch"))
            layout = cut.layout
            cut = models.build(layout.name, layout.num_classes, layout.shortcut, layout.widths, layout.maps)
    if p.after == "scratch" or p.epochs:
        trainer = Trainer(small, images, device, model=cut, masks=masks, observe=observer(images, dtype))
        trained = train_together([trainer], deadline=deadline, must_finish=True)[0]
        if trained.status == "paused":
            return
        cut, status, curve = trained.model, trained.status, trained.curve
    if status == "finished":
        metrics |= {"test_accuracy": test(cut), "validation_accuracy": validate(cut)}
    else:
        metrics |= {"failure": trained.failure}
    made = store.provenance(spec, device, dtype, "one", images.digest, time.monotonic() - start)
    store.save(spec, status, curve, metrics, made, root)


def needs_training(base: RunSpec, cuts: list[RunSpec], root) -> bool:
    """Whether a base has no record yet, or is to be cut and its weights are gone."""
    known = store.lookup(base, root)
    return known is None or (bool(cuts) and known["status"] == "finished" and not cache_path("weights", base, root).exists())


def run_job(base: RunSpec, cuts: list[RunSpec], root=None, device="cpu", threads: int = 0, deadline: float = math.inf) -> None:
    """One base run and the cuts that start from it, one after the other."""
    if threads:
        torch.set_num_threads(threads)
    if time.monotonic() > deadline:
        return
    images = load_images(base.data, base.train_size, str(device), base.init)
    if needs_training(base, cuts, root):
        path = cache_path("checkpoints", base, root)
        trainer = Trainer(base, images, device, starting_model(base, images), observe=observer(images, precision(base, device)))
        trained = train_together([trainer], [path], deadline=deadline, must_finish=not portable(base))[0]
        if trained.status == "paused":
            return
        save_base(base, trained, images, device, "one", root, bool(cuts))
    run_cuts(base, cuts, images, device, root, deadline)


def run_cuts(base: RunSpec, cuts: list[RunSpec], images, device, root, deadline: float) -> None:
    """The cuts of one base whose record and weights are stored; a base that diverged cannot be cut."""
    record = store.lookup(base, root)
    for spec in cuts:
        if record["status"] != "finished":
            made = store.provenance(spec, device, precision(spec, device), "one", images.digest, 0.0)
            store.save(spec, "diverged", {}, {"failure": record["metrics"].get("failure")}, made, root)
        elif time.monotonic() < deadline:
            model = removal.load_pruned(cache_path("weights", base, root))
            run_pruned(spec, model, record["metrics"], images, device, root, deadline)


def portable(spec: RunSpec) -> bool:
    """Whether a checkpoint (weights and momentum in float32) is small enough to travel."""
    return 2 * 4 * measure.parameters(new_model(spec, 10)) < PORTABLE


def jobs_of(specs: list[RunSpec], root=None) -> tuple[list[tuple[RunSpec, list[RunSpec]]], int]:
    """The missing runs of `specs`, each base with its cuts, in the order given; and how many records exist."""
    jobs: dict[RunSpec, list[RunSpec]] = {}
    reused, seen = 0, set()
    for spec in specs:
        if spec in seen:
            continue
        seen.add(spec)
        known = store.lookup(spec, root)
        if known is not None and not (known["stale"] and os.environ.get("FFR_STALE") == "rerun"):
            reused += 1
            continue
        if known is not None:
            Path(known["path"]).unlink()
        jobs.setdefault(base_of(spec), [])
        if spec != base_of(spec):
            jobs[base_of(spec)].append(spec)
    return list(jobs.items()), reused


def on_cores(jobs, root, workers: int, threads: int, deadline: float, bar) -> None:
    """Runs jobs as processes; those whose process was killed are tried again, from their checkpoints."""
    waiting, tries = list(jobs), 0
    while waiting:
        # Ctrl-C reaches the whole process group: the parent alone answers it.
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
            running = {pool.submit(run_job, base, cuts, root, "cpu", threads, deadline): (base, cuts) for base, cuts in waiting}
            waiting = []
            try:
                while running:
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        base, cuts = running.pop(future)
                        try:
                            future.result()
                            bar.update(1)
                            tries = 0
                        except BrokenProcessPool:
                            waiting.append((base, [c for c in cuts if store.lookup(c, root) is None]))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    process.terminate()
                raise
        tries += bool(waiting)
        if tries > RETRIES:
            raise RuntimeError(f"worker processes were killed {tries} times without finishing a run, perhaps for lack of memory; "
                               f"use fewer workers ({len(waiting)} runs are left, among them {key(waiting[0][0])})")  # fmt: skip


def on_gpu(jobs, root, device: str, together: int, deadline: float, bar) -> None:
    """Runs jobs in groups of equal data, net and recipe, each group at once on the card."""

    def shape(spec: RunSpec) -> tuple:
        return spec.data, spec.train_size, spec.model, spec.shortcut, spec.width, spec.init, spec.recipe

    def report(trainer: Trainer) -> None:
        bar.set_postfix_str(f"{trainer.spec.model} epoch {trainer.epoch}/{trainer.spec.recipe.epochs}", refresh=False)

    waiting = list(jobs)
    while waiting and time.monotonic() < deadline:
        first = waiting[0][0]
        group = [job for job in waiting if shape(job[0]) == shape(first)][: together or TOGETHER.get(first.model, 8)]
        waiting = [job for job in waiting if job not in group]
        images = load_images(first.data, first.train_size, device, first.init)
        observe, compiled = observer(images, precision(first, device)), first.model in COMPILED and first.recipe.epochs >= 50
        new = [job for job in group if needs_training(*job, root)]
        trainers = [Trainer(s, images, device, starting_model(s, images), observe=observe, compiled=compiled) for s, _ in new]
        paths = [cache_path("checkpoints", base, root) for base, _ in new]
        trained = train_together(trainers, paths, deadline=deadline, report=report, must_finish=not portable(first))
        for (base, cuts), result in zip(new, trained):
            if result.status != "paused":
                save_base(base, result, images, device, f"streams:{len(new)}" + " compiled" * compiled, root, bool(cuts))
        trainers, trained, result = [], [], None  # gives the card's memory back
        torch.cuda.empty_cache()
        for base, cuts in group:
            if not needs_training(base, cuts, root):
                run_cuts(base, cuts, images, device, root, deadline)
                bar.update(1)


def run_specs(specs: list[RunSpec], root: Path | None = None, workers: int = 0, device: str = "", minutes: float = math.inf,
              together: int = 0, progress: bool = True) -> Summary:  # fmt: skip
    """Makes sure that every spec has a record: what is stored is reused, the rest is run.

    `workers`: processes on a CPU (0: one a core, single-threaded; a single run gets all cores except at scale "quick").
    `device`: "cpu", "cuda" or "" (a GPU for the paper scale where there is one). `minutes`: stop cleanly before this
    limit. With FFR_TRAIN=never nothing is run and the rest is counted as missing. Raises ValueError for a damaged record,
    RuntimeError with one sentence when memory is short.
    """
    deadline = time.monotonic() + 60 * minutes
    jobs, reused = jobs_of(specs, root)
    missing = [spec for base, cuts in jobs for spec in ([base] if store.lookup(base, root) is None else []) + cuts]
    if not device:
        device = "cuda" if torch.cuda.is_available() and any(base.scale == "paper" for base, _ in jobs) else "cpu"
    choose("device", device, ("cpu", "cuda"))
    if not jobs or os.environ.get("FFR_TRAIN") == "never":
        return note(Summary(reused, missing=len(missing)))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with tqdm(total=len(jobs), desc=f"runs on {device}", unit="run", disable=not progress, smoothing=0.05) as bar:
            if device == "cuda":
                on_gpu(jobs, root, device, together, deadline, bar)
            elif len(jobs) == 1:
                threads = 1 if jobs[0][0].scale == "quick" else cores
                run_job(*jobs[0], root, device, threads, deadline)
                bar.update(1)
            else:
                on_cores(jobs, root, min(workers or cores, len(jobs)), 1, deadline, bar)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise RuntimeError(f"out of memory ({str(error).splitlines()[0]}); use fewer workers, or --together 1 on a GPU; "
                           "finished records are kept") from None  # fmt: skip
    made = [record["status"] for record in (store.lookup(spec, root) for spec in missing) if record]
    return note(Summary(reused, len(made), made.count("diverged"), len(missing) - len(made)))


def note(summary: Summary) -> Summary:
    """Appends the summary as a line to the file named by FFR_SUMMARY, for the command that started the notebook."""
    path = os.environ.get("FFR_SUMMARY")
    if path:
        with open(path, "a") as file:
            file.write(json.dumps(summary.__dict__) + "\n")
    return summary


def pack(root: Path, out: Path, name: str, folder: str, pattern: str) -> None:
    """One archive of the files of a store folder, to carry from one machine to another."""
    files = sorted(f for f in (root / folder).glob(pattern) if f.stat().st_size <= PORTABLE)
    if files:
        with tarfile.open(out / name, "w:gz") as archive:
            for file in files:
                archive.add(file, arcname=str(file.relative_to(root)))


def main(arguments: list[str] | None = None) -> None:
    from ffrlib import catalogue  # the list of experiments lies above this module

    parser = argparse.ArgumentParser(prog="python -m ffrlib.run", description="Run what has no record yet.")
    parser.add_argument("--scale", default="quick", help="quick, laptop or paper")
    parser.add_argument("--experiment", default="", help="only this experiment of the catalogue")
    parser.add_argument("--model", default="", help="only runs of this net")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop cleanly before this many minutes")
    parser.add_argument("--device", default="", help="cpu or cuda; default: a GPU for the paper scale where there is one")
    parser.add_argument("--workers", type=int, default=0, help="processes on a CPU; default: one a core")
    parser.add_argument("--together", type=int, default=0, help="runs at once on a GPU; default: by the size of the net")
    parser.add_argument("--out", type=Path, help="store folder of its own; leaves records.tar.gz and checkpoints.tar.gz there")
    parser.add_argument("--plan", action="store_true", help="say what would run and how long it takes, and stop")
    given = parser.parse_args(arguments)
    try:
        specs = catalogue.specs(given.scale, given.experiment or None)
        if given.plan:
            return print(catalogue.plan(given.scale, given.experiment or None, given.workers))
        specs = [s for s in specs if given.model in ("", s.model) and not (given.out and store.lookup(s) is not None)]
        summary = run_specs(specs, given.out, given.workers, given.device, given.minutes, given.together)
        if given.out:
            pack(given.out, given.out, "records.tar.gz", "runs", "*/*/*.json")
            pack(given.out, given.out, "checkpoints.tar.gz", "cache/checkpoints", "*/*/*.npz")
        print(summary)
    except KeyboardInterrupt:
        sys.exit("interrupted; finished records and checkpoints are kept, the same command goes on from there")
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
