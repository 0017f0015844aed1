"""Run what has no record yet: on CPU cores as single-threaded processes, on a GPU several at once, or on a cluster.

python -m ffrlib.run --scale paper --minutes 9 --out DIR    the next runs of the catalogue, by priority
python -m ffrlib.run --plan --scale laptop                  what would run, and how many minutes
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import sys
import tarfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ffrlib import fetch, store
from ffrlib.cluster import on_cluster, short_of_memory
from ffrlib.files import write_atomically
from ffrlib.gpu import on_gpu
from ffrlib.jobs import PORTABLE, cache_path
from ffrlib.models import published
from ffrlib.spec import MODELS, RunSpec, base_of, choose, require
from ffrlib.training import deterministic
from ffrlib.workers import Job, on_cores, start_job, still_missing

RESERVE = 0.05  # of the minutes, up to 30 s: for measuring and writing what has been trained


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


def jobs_of(specs: list[RunSpec], root=None) -> tuple[list[Job], int]:
    """The missing runs of `specs` in the order given, and how many records exist. A base may come twice: alone, and
    where the first of its cuts has its turn, with all of them (weights over 16 MB do not travel from visit to visit).

    With FFR_STALE=rerun a record made by other code counts as missing; `start_job` takes it away.
    """
    turns: dict[tuple[RunSpec, bool], list[RunSpec]] = {}  # (base, for its cuts) -> cuts
    reused = 0
    for spec in dict.fromkeys(specs):
        if store.current(spec, root):
            reused += 1
            continue
        base = base_of(spec)
        if spec != base:
            turns.setdefault((base, True), []).append(spec)
        elif (base, True) not in turns:
            turns[base, False] = []
    order = [base for base, _ in turns]
    alone = {(a, False) for a, b in pairwise(order) if a == b}  # its cuts come next: one turn
    return [(base, cuts) for (base, cut), cuts in turns.items() if (base, cut) not in alone], reused


def present(jobs: list[Job]) -> list[Job]:
    """The jobs whose images and published weights are here or can be fetched; says once what the others lack."""

    @functools.cache
    def lacks(find, name: str) -> bool:
        try:
            return not find(name)
        except FileNotFoundError as error:
            print(f"Not run: {error}", file=sys.stderr, flush=True)
            return True

    def fits(base: RunSpec) -> bool:
        images = base.data != "digits" and lacks(fetch.locate, base.data)
        return not (images or (base.init == "published" and lacks(published.locate, base.model)))

    return [(base, cuts) for base, cuts in jobs if fits(base)]


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_specs(specs: list[RunSpec], root: Path | None = None, workers: int = 0, device: str = "",
              minutes: float = math.inf, together: int = 0, progress: bool = True,
              scheduler: str = "") -> Summary:  # fmt: skip
    """Makes sure that every spec has a record: what is stored is reused, the rest is run.

    `workers`: processes on a CPU (0: one a core, single-threaded; a single run gets all cores, except on the digits).
    `device`: "cpu", "cuda" or "" (a GPU for the paper scale where there is one). `minutes`: stop cleanly before this
    limit. `scheduler`: address of a Dask cluster whose workers do the runs (default: FFR_SCHEDULER), one each on a CPU
    unless `device` says otherwise. With FFR_TRAIN=never nothing is run and the rest is counted as missing. Raises
    ValueError for a damaged record, RuntimeError with one sentence when memory is short or the cluster fails. Runs
    whose images or published weights are not to be had are left out, with a line on stderr, and count as missing.
    """
    scheduler = scheduler or os.environ.get("FFR_SCHEDULER", "")
    deadline = time.monotonic() + 60 * minutes - min(RESERVE * 60 * minutes, 30)
    store.note_code()
    jobs, reused = jobs_of(specs, root)
    missing = still_missing(list(dict.fromkeys(spec for base, cuts in jobs for spec in (base, *cuts))), root)
    if not device:
        paper = any(base.scale == "paper" for base, _ in jobs)
        device = "cuda" if paper and torch.cuda.is_available() and not scheduler else "cpu"
    choose("device", device, ("cpu", "cuda"))
    if not jobs or os.environ.get("FFR_TRAIN") == "never" or time.monotonic() >= deadline:
        return note(Summary(reused, missing=len(missing)))
    if not scheduler:  # a cluster's workers look for themselves
        jobs = present(jobs)
    place = scheduler or device
    try:
        with tqdm(total=len(jobs), desc=f"runs on {place}", unit="run", disable=not progress, smoothing=0.05) as bar:
            if scheduler:
                on_cluster(jobs, root, scheduler, device, deadline, bar)
            elif device == "cuda":
                on_gpu(jobs, root, device, together, deadline, bar)
            elif len(jobs) == 1:
                threads = 1 if jobs[0][0].data == "digits" else workers or cores()
                start_job(*jobs[0], root, device, threads, deadline)
                bar.update(1)
            else:
                on_cores(jobs, root, min(workers or cores(), len(jobs)), deadline, bar)
    except (RuntimeError, MemoryError) as error:
        if not short_of_memory(error):
            raise
        reason = (str(error).splitlines() or ["no details"])[0]
        hint = "use fewer workers, or --together 1 on a GPU; finished records are kept"
        raise RuntimeError(f"out of memory ({reason}); {hint}") from None
    made = [record["status"] for record in (store.current(spec, root) for spec in missing) if record]
    return note(Summary(reused, len(made), made.count("diverged"), len(missing) - len(made)))


def note(summary: Summary) -> Summary:
    """Appends the summary as a line to the file named by FFR_SUMMARY, for the command that started the notebook."""
    path = os.environ.get("FFR_SUMMARY")
    if path:
        with open(path, "a") as file:
            file.write(json.dumps(asdict(summary)) + "\n")
    return summary


def pack(root: Path, name: str, folder: str, only=None) -> None:
    """One archive of a folder of the store (of the paths `only`), to carry from one machine to another: files that are
    small enough."""
    found = (f for f in (root / folder).rglob("*.*") if f.is_file() and not f.name.startswith("."))
    found = (f for f in found if only is None or f in only)
    files = sorted(f for f in found if f.stat().st_size <= PORTABLE)

    def write(file) -> None:
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            for path in files:
                archive.add(path, arcname=str(path.relative_to(root)))

    if files:
        write_atomically(root / name, write)
    else:  # no archive of an earlier call that would carry what has served
        (root / name).unlink(missing_ok=True)


def pack_all(scale: str, seeds: int, root: Path | None) -> None:
    """The archives of a store of its own, if there is one: records, checkpoints, and the weights that cuts of any call
    still need."""
    from ffrlib import catalogue

    if not root:
        return
    pack(root, "records.tar.gz", "runs")
    pack(root, "checkpoints.tar.gz", "cache/checkpoints")
    cuts = [s for s in catalogue.specs(scale, None, seeds) if s != base_of(s)]
    to_come = {base_of(s) for s in cuts if not (store.current(s) or store.current(s, root))}
    pack(root, "weights.tar.gz", "cache/weights", {cache_path("weights", base, root) for base in to_come})


def bring_bases(specs: list[RunSpec], root: Path) -> None:
    """Copies to a store of its own the records of the bases whose cuts it will make: no run gets a second record."""
    for base in {base_of(spec) for spec in specs} - set(specs):
        if store.current(base) and not (path := store.record_path(base, root)).exists():
            write_atomically(path, store.record_path(base).read_bytes())


def main(arguments: list[str] | None = None) -> None:
    from ffrlib import catalogue, plan  # the list of experiments lies above this module

    parser = argparse.ArgumentParser(prog="python -m ffrlib.run", description="Run what has no record yet.")
    parser.add_argument("--scale", default="quick", help="quick, laptop or paper")
    parser.add_argument("--experiment", default="", help="only this experiment of the catalogue")
    parser.add_argument("--model", default="", help="only runs of this net")
    parser.add_argument("--seeds", type=int, default=0, help="seeds of each run; default: the scale's own number")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop cleanly before this many minutes")
    parser.add_argument("--device", default="", help="cpu or cuda; default: a GPU for the paper scale if there is one")
    parser.add_argument("--workers", type=int, default=0, help="processes on a CPU; default: one a core")
    parser.add_argument("--scheduler", default="", help="address of a Dask cluster that does the runs")
    parser.add_argument("--together", type=int, default=0, help="runs at once on a GPU; default: by the net's size")
    parser.add_argument("--out", type=Path, help="store folder of its own, and archives of it to carry")
    parser.add_argument("--deterministic", action="store_true", help="equal runs on one GPU bitwise equal, but slower")
    parser.add_argument("--plan", action="store_true", help="say what would run and how long it takes, and stop")
    given = parser.parse_args(arguments)
    try:
        if net := given.model:
            choose("--model", net, MODELS)
        require(given.workers >= 0, "--workers", given.workers, "a number of processes, 0 for one a core")
        require(given.minutes > 0, "--minutes", given.minutes, "a number of minutes above 0")
        require(given.together >= 0, "--together", given.together, "a number of runs, 0 to choose by the net's size")
        if given.plan:
            workers = given.workers or cores()
            asked = (given.scale, given.experiment or None, workers, given.seeds, net, given.device, given.out)
            return print(plan.plan(*asked))
        if given.deterministic:
            deterministic()
        specs = catalogue.specs(given.scale, given.experiment or None, given.seeds)
        specs = [s for s in specs if net in ("", s.model)]
        if not specs:
            print(f"The catalogue asks for no such run of {net} at scale {given.scale}.", file=sys.stderr)
        if given.out:  # what the main store holds need not be made again
            specs = [s for s in specs if store.current(s) is None]
            bring_bases(specs, given.out)
        try:
            summary = run_specs(specs, given.out, given.workers, given.device, given.minutes, given.together,
                                scheduler=given.scheduler)  # fmt: skip
        except BaseException:  # what is finished travels, however the call ends
            with suppress(Exception):  # a full disk or a damaged record has been told already
                pack_all(given.scale, given.seeds, given.out)
            raise
        pack_all(given.scale, given.seeds, given.out)
        print(summary)
    except KeyboardInterrupt:
        sys.exit("interrupted; finished records and checkpoints are kept, the same command goes on from there")
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
