"""Runs of one shape at once on a GPU, with the cuts that start from them (the other places: `workers`, `cluster`)."""

from __future__ import annotations

import time
from contextlib import ExitStack
from operator import attrgetter

import torch

from ffrlib import store
from ffrlib.cluster import drop_unreadable
from ffrlib.jobs import (
    cache_path,
    closing,
    images_of,
    needs_training,
    portable,
    run_cuts,
    save_base,
    starting_model,
    trainer_of,
)  # fmt: skip
from ffrlib.together import fitting, train_together
from ffrlib.workers import Job, claimed, set_aside, still_missing

TOGETHER = {"vgg16": 4, "vgg19": 4, "resnet56": 6, "resnet110": 4, "resnet18_tiny": 2, "alexnet_small": 16}
# Runs at once on one GPU (others: 8). Compiled there from 50 epochs on: 20 s of compiling win 25 % of VGG16's time.
COMPILED = ("vgg16", "vgg19")


def run_group(group: list[Job], root, device: str, deadline: float, bar, to_cut=()) -> None:
    """Runs jobs of equal data, net and recipe at once on the card; weights of the bases `to_cut` are kept."""

    def show_epoch(trainer) -> None:
        bar.set_postfix_str(f"{trainer.spec.model} epoch {trainer.epoch}/{trainer.spec.recipe.epochs}", refresh=False)

    first = group[0][0]
    images = images_of(first, device)
    new = [job for job in group if needs_training(*job, root)]
    compiled = first.model in COMPILED and first.recipe.epochs >= 50
    trainers = [trainer_of(s, images, device, starting_model(s, images), compiled=compiled) for s, _ in new]
    paths = [cache_path("checkpoints", s, root) for s, _ in new]
    if trainers and not portable(first) and not any(path.exists() for path in paths):
        fit = fitting(trainers, deadline, closing(images))  # rather fewer that end than many that do not
        trainers = fit or trainers  # where none does, `train_together` says how long it takes
    new = new[: len(trainers)]

    trained = train_together(trainers, paths, deadline=deadline, report=show_epoch, must_finish=not portable(first),
                             closing=closing(images))  # fmt: skip
    for (spec, cuts), result in zip(new, trained):
        if result.status != "paused":
            stacking = f"streams:{len(new)}" + (", compiled" if compiled else "")
            save_base(spec, result, device, stacking, root, bool(cuts) or spec in to_cut)
    del trainers, trained
    torch.cuda.empty_cache()
    errors = []
    for base, cuts in group:
        if not needs_training(base, cuts, root):
            try:
                run_cuts(base, cuts, device, root, deadline)
            except ValueError as error:  # of one cut: those of other bases go on
                errors.append(error)
            bar.update(1)
    if errors:
        raise errors[0]


def on_gpu(jobs: list[Job], root, device: str, together: int, deadline: float, bar) -> None:
    """Runs jobs in groups, each at once on the card; what another call is making is left to it."""
    shape, waiting = attrgetter("data", "train_size", "model", "shortcut", "width", "init", "recipe"), list(jobs)
    to_cut = {base for base, cuts in jobs if cuts}
    errors = []
    torch.backends.cudnn.allow_tf32 = False  # where a record says float32, it was

    def to_train(job: Job) -> bool:
        return store.current(job[0], root) is None or needs_training(*job, root)

    while waiting and time.monotonic() < deadline:
        first, group = waiting[0][0], waiting[:1]
        if to_train(waiting[0]):  # in company of others that are
            alike = {b: (b, cuts) for b, cuts in reversed(waiting) if shape(b) == shape(first)}  # a base's first turn
            group = [job for job in waiting if job in alike.values() and to_train(job)]
        group = group[: together or TOGETHER.get(first.model, 8)]
        waiting = [job for job in waiting if job not in group]
        with ExitStack() as claims:
            ours = [job for job in group if claims.enter_context(claimed(job[0], root))]
            for job in ours:
                claims.enter_context(set_aside(*job, root))
                drop_unreadable(cache_path("weights", job[0], root))
            ours = [(base, still_missing(cuts, root)) for base, cuts in ours]
            try:
                if ours:
                    run_group(ours, root, device, deadline, bar, to_cut)
            except (ValueError, FileNotFoundError) as error:  # of one run, or of one image set: the others go on
                errors.append(error)
        waiting = [job for job in waiting if not any(job[0] == base and to_train((base, [])) for base, _ in group)]
        # ... paused or left to another call: a second turn would pause again
    if errors:
        raise errors[0]
