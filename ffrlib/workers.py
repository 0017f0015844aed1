"""Runs on the cores of one machine, as single-threaded processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ffrlib import store
from ffrlib.cluster import drop_unreadable, outdated, paths_of, short_of_memory
from ffrlib.files import results_folder
from ffrlib.jobs import cache_path, run_job
from ffrlib.spec import RunSpec, key

FOREVER = 1e9  # seconds
RETRIES = 2  # after worker processes were killed, without a run finished in between
Job = tuple[RunSpec, list[RunSpec]]  # a base run and the cuts that start from it


@contextmanager
def children_deaf_to_ctrl_c():
    """A terminal sends Ctrl-C to all processes; those started in here leave the answer to their parent."""
    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main_thread else None
    try:
        yield
    finally:
        if main_thread:
            signal.signal(signal.SIGINT, before)


def still_missing(specs: list[RunSpec], root) -> list[RunSpec]:
    return [spec for spec in specs if store.current(spec, root) is None]


@contextmanager
def claimed(base: RunSpec, root, patience: float = 0) -> Iterator[bool]:
    """Whether the job of this base is ours: within `patience` seconds no other call on the same store is at it. The
    claim is a file lock, which ends with its process however that ends."""
    place = cache_path("locks", base, root).with_suffix(".lock")
    lock = FileLock(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=patience)
    except Timeout:
        yield False
        return
    except OSError as error:  # the store cannot be written to: say so before hours of training
        raise OSError(error.errno, f"{error.strerror}; nothing was written", str(place)) from error
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def set_aside(base: RunSpec, cuts: list[RunSpec], root) -> Iterator[None]:
    """What FFR_STALE=rerun makes anew of a job lies in `cache/replaced` meanwhile. What has no successor in the end is
    put back (after a kill in the job's next turn), weights only with their record."""
    home = Path(root) if root else results_folder()
    kept = {path: home / "cache" / "replaced" / name for name, path in paths_of([base, *cuts], home).items()}
    record, weights = store.record_path(base, home), cache_path("weights", base, home)

    def put_back() -> None:
        aside = kept[record].exists()
        made = aside and record.exists() and record.read_bytes() != kept[record].read_bytes()
        if aside and not made:
            weights.unlink(missing_ok=True)  # of a new run that was not measured any more
        for path, old in reversed(kept.items()):  # records last: a kill in here must not part weights from theirs
            if old.exists() and (path.exists() or (path == weights and made)):
                old.unlink()
            elif old.exists():
                old.replace(path)

    put_back()
    for path in reversed(outdated([base, *cuts], home)):  # for the same reason weights first
        if path.exists():
            kept[path].parent.mkdir(parents=True, exist_ok=True)
            path.replace(kept[path])
    try:
        yield
    finally:
        put_back()


def bring_back(base: RunSpec, cuts: list[RunSpec], root) -> None:
    """Brings back what a killed worker had set aside of a job, unless another call is at it."""
    with claimed(base, root) as ours, set_aside(base, cuts, root) if ours else nullcontext():
        pass


def start_job(base: RunSpec, cuts: list[RunSpec], root, device: str, threads: int, deadline: float,
              keep_weights: bool = False, wait: bool = True) -> bool:  # fmt: skip
    """`run_job`, once what FFR_STALE=rerun makes anew is out of its way: not before its turn has come. True where it
    was left alone because another call is at it; with `wait`, what that call leaves undone is done after it."""
    if (left := deadline - time.monotonic()) <= 0:
        return False
    with claimed(base, root, min(left, FOREVER) if wait else 0) as ours:
        if ours:
            with set_aside(base, cuts, root):
                drop_unreadable(cache_path("weights", base, root))
                run_job(base, still_missing(cuts, root), root, device, threads, deadline, keep_weights)
    return not ours


def begin_worker() -> None:
    """In a worker: ends it when the process that started it is killed; it would train on beside the next call."""
    store.note_code()

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def on_cores(jobs: list[Job], root, workers: int, deadline: float, bar) -> None:
    """Runs jobs as processes, single-threaded unless begun otherwise; killed ones' jobs go on from checkpoints.

    A job that raises does not stop the others: the first error is raised when they are done. Errors that concern all
    (the disk, memory) are raised at once. What another call is making has its turn at the end, and is waited for.
    """
    waiting, elsewhere, tries, errors, to_cut = list(jobs), [], 0, [], {base for base, cuts in jobs if cuts}
    while waiting or elsewhere:
        wait = not waiting
        if wait:
            waiting, elsewhere = elsewhere, []
            print(f"Waiting for {len(waiting)} runs that others are making.", file=sys.stderr, flush=True)
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, spawn, initializer=begin_worker) as pool:
            running, waiting, left = {}, [], list(waiting)
            try:
                with children_deaf_to_ctrl_c(), suppress(BrokenProcessPool):  # it may break before all are handed over
                    while left:
                        base, cuts = job = left[0]
                        how = ("cpu", 1, deadline, base in to_cut, wait)
                        running[pool.submit(start_job, base, cuts, root, *how)] = job
                        left.pop(0)
                for future in as_completed(running):
                    base, cuts = running[future]
                    try:
                        if future.result():
                            elsewhere.append((base, cuts))
                            continue
                        bar.update(1)
                        tries = 0
                    except BrokenProcessPool:  # one death fails all that wait: which run it was cannot be told
                        waiting.append((base, still_missing(cuts, root)))
                    except Exception as error:
                        missing = isinstance(error, FileNotFoundError)  # images of one set: the others need them not
                        if isinstance(error, OSError) and not missing or short_of_memory(error):
                            raise
                        errors.append(error)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                children = multiprocessing.active_children()
                for process in children:
                    process.terminate()
                for process in children:
                    process.join()
                for base, cuts in running.values():
                    bring_back(base, cuts, root)
                raise
            waiting += left
        tries += bool(waiting)
        if tries > RETRIES:
            raise RuntimeError(
                f"worker processes were killed {tries} times without a run finished in between, perhaps for lack of "
                f"memory: use fewer workers; or the script that asks for the runs is no file, or does so outside of "
                f'`if __name__ == "__main__":` ({len(waiting)} runs are left, the first is {key(waiting[0][0])})'
            )
    if errors:
        raise errors[0]
