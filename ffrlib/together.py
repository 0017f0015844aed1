"""When runs advance, never what they compute: side by side, written to checkpoints, within a time limit.

A CPU run's code hash therefore leaves this module out (see `store.modules_of`).
"""

from __future__ import annotations

import math
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from ffrlib import checkpoint
from ffrlib.training import Trainer

WARM_UP = 3  # eager steps before a capture: cuDNN picks its algorithms, lazy state is made


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Trained:
    """What training leaves: the net (eval mode), its curve, and how it ended ("finished", "diverged" or "paused")."""

    model: torch.nn.Module
    curve: dict
    status: str
    seconds: float
    failure: dict | None = None


def capture(trainer: Trainer) -> None:
    """Captures one step as a CUDA graph on a stream of its own; the warm-up steps leave no trace."""
    trainer.stream, kept = torch.cuda.Stream(trainer.device), checkpoint.state(trainer)
    trainer.begin_epoch()
    trainer.stream.wait_stream(torch.cuda.current_stream(trainer.device))
    with torch.cuda.stream(trainer.stream):
        for _ in range(WARM_UP):
            trainer.step()
            trainer.at.zero_()
    trainer.stream.synchronize()
    trainer.graph = torch.cuda.CUDAGraph()
    if trainer.dropouts:
        trainer.graph.register_generator_state(trainer.dropout_generator)
    with torch.cuda.graph(trainer.graph, stream=trainer.stream):
        trainer.step()
    checkpoint.load_state(trainer, kept)


def advance_all(trainers: list[Trainer]) -> None:
    """One step of each, captured ones on their own streams."""
    for trainer in trainers:
        with torch.cuda.stream(trainer.stream) if trainer.graph else nullcontext():
            trainer.advance()


def epoch_seconds(trainers: list[Trainer]) -> float:
    """How long an epoch of them all takes, from the second of two steps that leave no trace: on a GPU together."""
    kept = [checkpoint.state(trainer) for trainer in trainers]
    for trainer in trainers:
        trainer.begin_epoch()
    for _ in range(2):
        synchronise(trainers[0].device)
        start = time.monotonic()
        advance_all(trainers)
        synchronise(trainers[0].device)
        took = time.monotonic() - start
        for trainer in trainers:
            trainer.at.zero_()
    for trainer, state in zip(trainers, kept):
        checkpoint.load_state(trainer, state)
    return took * max(trainer.steps for trainer in trainers)


def fitting(trainers: list[Trainer], deadline: float, closing: float = 0) -> list[Trainer]:
    """As many of the first trainers as reach their ends together before `deadline`, by their measured speed."""
    for trainer in trainers:
        if trainer.device.type == "cuda" and trainer.graph is None:
            capture(trainer)
    for count in range(len(trainers), 0, -1):
        some = trainers[:count]
        left = max(t.spec.recipe.epochs - t.epoch for t in some)
        after = sum(closing / (t.steps * t.batch) for t in some) / count
        if time.monotonic() + (1.1 * left + after) * epoch_seconds(some) <= deadline:
            return some
    return []


def result(trainer: Trainer) -> Trained:
    status = "diverged" if trainer.failure else "finished" if trainer.finished else "paused"
    return Trained(trainer.model.eval(), trainer.curve, status, trainer.seconds, trainer.failure)


def save_all(trainers: list[Trainer], paths: dict) -> None:
    for trainer in trainers:
        if trainer in paths:
            checkpoint.save(trainer, paths[trainer])


def train_together(trainers: list[Trainer], checkpoints=None, every: float | None = None, deadline: float = math.inf,
                   report=None, must_finish: bool = False, closing: float = 0) -> list[Trained]:  # fmt: skip
    """Trains runs to their ends, or pauses them cleanly at an epoch before `deadline` (of time.monotonic()).

    Each computes what it would compute alone. On a GPU it replays its captured step on its own stream, so the runs fill
    the card together; on a CPU they take turns step by step (give it one). `checkpoints`: a path for each trainer or
    None; read first, written at most every `every` seconds (FFR_CHECKPOINT_SECONDS, or 60), and when pausing.
    `report(trainer)` is called after each of its epochs. `must_finish`: pause as soon as the measured speed says that
    the end is out of reach (for runs whose checkpoint cannot travel). `closing`: how many images' worth of training the
    measuring of each net takes; the epoch that ends a run is started only where this fits in, too.
    """
    paths = {trainer: path for trainer, path in zip(trainers, checkpoints or []) if path is not None}
    for trainer in trainers:
        if trainer in paths:
            checkpoint.restore(trainer, paths[trainer])
        if trainer.device.type == "cuda" and not trainer.finished and trainer.graph is None:
            capture(trainer)
    active = [t for t in trainers if not t.finished]
    slowest = epoch_seconds(active) if active and deadline < math.inf else 0.0
    every = float(os.environ.get("FFR_CHECKPOINT_SECONDS", 60)) if every is None else every
    saved, unsaved = time.monotonic(), False
    while active:
        start = time.monotonic()
        epochs_ahead = max(t.spec.recipe.epochs - t.epoch for t in active) if must_finish else 1
        ending = [t for t in trainers if not t.failure and t.epoch + epochs_ahead >= t.spec.recipe.epochs]
        after = slowest / len(active) * sum(closing / (t.steps * t.batch) for t in ending)
        need = 1.1 * epochs_ahead * slowest
        if start + need + after > deadline:
            if must_finish or start + need < deadline:
                need = f"{(need + after) / 60:.1f} minutes"
                print(f"Paused: to end and to measure what runs here takes about {need}.", file=sys.stderr, flush=True)
            break
        for trainer in active:
            trainer.begin_epoch()
        synchronise(active[0].device)  # the tables were filled on another stream
        for i in range(max(t.steps for t in active)):
            advance_all([t for t in active if i < t.steps])
        synchronise(active[0].device)
        for trainer in active:
            trainer.end_epoch()
        took = time.monotonic() - start
        slowest = max(slowest, took)
        for trainer in active:
            trainer.seconds += took / len(active)
            if report:
                report(trainer)
        active = [t for t in active if not t.finished]
        unsaved = True
        if time.monotonic() - saved > every:
            save_all(active, paths)
            saved, unsaved = time.monotonic(), False
    if unsaved:
        save_all(active, paths)
    return [result(trainer) for trainer in trainers]
