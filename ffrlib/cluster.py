"""Runs on other machines: a Dask cluster trains, and this process alone writes the records. See docs/cluster.md.

A worker runs a job in a folder of its own that goes afterwards. The job's files travel as bytes: its records, and where
they are small enough the weights and the checkpoint from which a later call goes on.
"""

from __future__ import annotations

import errno
import math
import platform
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import torch

from ffrlib import checkpoint, store
from ffrlib.files import results_folder, write_atomically
from ffrlib.jobs import PORTABLE, cache_path, checkpoints, run_job
from ffrlib.pruning import removal
from ffrlib.spec import RunSpec, from_dict, key, to_dict

PATIENCE = 10  # seconds in which the scheduler must answer
UNFIT = "the worker on "  # how the sentence about a worker begins that no job can be given to


class Lacking(Exception):
    """A job's images or published weights can neither be found nor fetched by a worker: (its address, what to do)."""


def paths_of(specs: list[RunSpec], root: Path) -> dict[str, Path]:
    """Where the files of a job (its base and its cuts) lie, by their names under the store; the checkpoint last."""
    paths = [store.record_path(spec, root) for spec in specs]
    paths += [cache_path(kind, specs[0], root) for kind in ("weights", "checkpoints")]
    return {path.relative_to(root).as_posix(): path for path in paths}


def outdated(specs: list[RunSpec], root: Path | None) -> list[Path]:
    """The records of a job that FFR_STALE=rerun makes anew, and the weights of its base if they go with one."""
    stale = [spec for spec in specs if store.lookup(spec, root) and not store.current(spec, root)]
    weights = [cache_path("weights", specs[0], root)] if specs[0] in stale else []
    return [store.record_path(spec, root) for spec in stale] + weights


def short_of_memory(error: Exception) -> bool:
    """Whether memory was short: on a CPU torch says so in a RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def drop_unreadable(weights: Path) -> None:
    """Removes stored weights that are damaged, with a line on stderr: their run is then made again."""
    try:
        removal.load_pruned(weights)
    except FileNotFoundError:
        pass
    except checkpoint.UNREADABLE as error:
        if short_of_memory(error) or getattr(error, "errno", None) not in (None, errno.EINVAL):
            raise  # which says nothing about the file
        print(f"{weights} cannot be read ({error}); its run is made again.", file=sys.stderr, flush=True)
        weights.unlink()


def contents(specs: list[RunSpec], root: Path) -> dict[str, bytes]:
    """What there is of a job's files, as far as it may travel."""
    old = outdated(specs, root)
    found = {name: path for name, path in paths_of(specs, root).items() if path.exists() and path not in old}
    found |= {path.relative_to(root).as_posix(): path for path in checkpoints(specs[0], specs[1:], root)}
    return {name: path.read_bytes() for name, path in found.items() if path.stat().st_size <= PORTABLE}


def work(settings: list[dict], code: list[str], files: dict[str, bytes], device: str, until: float) -> dict[str, bytes]:
    """One job, in a worker: takes the files that there are of it, and returns those that there are afterwards.

    `settings` and `code` are those of the base and its cuts; `until`: when to stop, seconds of time.time(). Raises
    RuntimeError in a worker of other code or with several threads, which would share one stream of random numbers, and
    Lacking where the data are missing.
    """
    from distributed import get_worker

    specs, worker = [from_dict(each) for each in settings], get_worker()
    if [store.code_hash(spec) for spec in specs] != code:
        raise RuntimeError(f"{UNFIT}{platform.node()} runs another version of ffrlib: use one commit everywhere")
    if worker.state.nthreads != 1:
        raise RuntimeError(f"{UNFIT}{platform.node()} has several threads: start it with --nthreads 1")
    with tempfile.TemporaryDirectory(dir=worker.local_directory) as folder:
        root = Path(folder)
        for name, content in files.items():
            write_atomically(root / name, content)
        try:
            run_job(specs[0], specs[1:], root, device, 1, time.monotonic() + until - time.time())
        except FileNotFoundError as error:
            raise Lacking(worker.address, str(error)) from None
        return contents(specs, root)


def keep(specs: list[RunSpec], root: Path, files: dict[str, bytes]) -> None:
    """Writes what came back of a job: records that are new, once verified, then weights and checkpoint."""
    old = outdated(specs, root)
    for name, path in paths_of(specs, root).items():
        record = path.suffix == ".json"
        if name in files and not (record and path.exists() and path not in old):
            if record:
                store.parse(files[name], path)
            write_atomically(path, files[name])
    if name not in files and store.lookup(specs[0], root):  # the base has ended: its checkpoint has served
        path.unlink(missing_ok=True)
    for spec in specs[1:]:  # a cut's checkpoint has a digest in its name
        path = cache_path("checkpoints", spec, root)
        for name in files:
            if re.fullmatch(re.escape(path.with_suffix("").relative_to(root).as_posix()) + r"-[0-9a-f]{8}\.npz", name):
                write_atomically(root / name, files[name])
        if store.lookup(spec, root):
            for path in checkpoints(spec, [spec], root):
                path.unlink()


def arrivals(client, running: dict, deadline: float) -> Iterator:
    """The futures as they end, then those added to `running` meanwhile. At the deadline those not started are given up;
    runs in progress stop themselves."""
    from distributed import as_completed

    try:
        while running:
            left = None if deadline == math.inf else max(deadline - time.monotonic(), 0)
            yield from as_completed(list(running), timeout=left)
    except TimeoutError:
        started = {name for names in client.processing().values() for name in names}
        # One that ended before this answer has its result on a worker by the next, whatever this client knows of it.
        started |= {name for name, places in client.who_has(list(running)).items() if places}
        yield from as_completed([future for future in running if future.done() or future.key in started])


def on_cluster(jobs: list, root: Path | None, address: str, device: str, deadline: float, bar) -> None:
    """Runs jobs on the Dask cluster whose scheduler listens at `address`; a job whose worker dies is run again.

    Raises RuntimeError in one sentence where Dask is missing, the scheduler does not answer or goes away, a worker is
    unfit, or a job's workers died again and again; and the first error that a job raised, once the others are done.
    """
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise RuntimeError('a scheduler is named, but Dask is not installed: pip install "dask[distributed]"') from None

    def start(*job):  # a function in a function travels by value: a worker without ffrlib can say so
        from ffrlib.cluster import work

        return work(*job)

    try:
        client = Client(address, timeout=PATIENCE)
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or ["no details"])[0]
        raise RuntimeError(f"no Dask scheduler answers at {address} ({reason})") from None
    root, until = root or results_folder(), time.time() + deadline - time.monotonic()
    with client:
        running, errors, gathered, lacking = {}, [], {}, {}
        for base, cuts in jobs:  # whole jobs only: what a second one of the same base needs is not here yet
            gathered.setdefault(base, []).extend(cuts)

        def send(specs: list[RunSpec], workers: list[str] | None = None) -> None:
            settings, code = [to_dict(spec) for spec in specs], [store.code_hash(spec) for spec in specs]
            job = (settings, code, contents(specs, root), device, until)
            running[client.submit(start, *job, pure=False, workers=workers)] = specs

        try:
            for base, cuts in gathered.items():
                drop_unreadable(cache_path("weights", base, root))
                send([base, *cuts])
            if not client.nthreads():
                bar.write("no worker has joined the cluster yet; waiting for one", file=sys.stderr)
            for future in arrivals(client, running, deadline):
                specs = running.pop(future)
                try:
                    files = future.result()
                except Lacking as error:  # which is no reason for a worker that has the data
                    worker, why = error.args
                    lacking.setdefault(specs[0], set()).add(worker)
                    if others := [w for w in client.nthreads() if w not in lacking[specs[0]]]:
                        send(specs, others)
                    else:
                        print(f"Not run: {why}", file=sys.stderr, flush=True)
                    continue
                except (KilledWorker, CancelledError, ImportError):
                    raise
                except Exception as error:  # a run that fails does not stop the others
                    if str(error).startswith(UNFIT):  # it fails at once, so it would empty the queue
                        raise
                    errors.append(error)
                    continue
                keep(specs, root, files)
                bar.update(sum(base == specs[0] for base, _ in jobs))
        except KilledWorker as error:
            deaths = f"{error.allowed_failures + 1} workers died while it ran, perhaps for lack of memory"
            raise RuntimeError(f"run {key(specs[0])}: {deaths}") from None
        except CancelledError:
            raise RuntimeError(f"the scheduler at {address} is gone; finished records are kept") from None
        except ImportError as error:
            raise RuntimeError(f"a worker cannot load ffrlib ({error}): use one environment everywhere") from None
        finally:
            client.cancel(list(running))
        if errors:
            raise errors[0]
