"""Processes of one machine: two calls share the work, a killed worker costs no run."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from ffrlib import jobs, store, workers
from ffrlib.spec import FlowPenalty, Pruning, Recipe, RunSpec

BASE = RunSpec(train_size=200, recipe=Recipe(epochs=2, batch_size=50))
SMOOTH = replace(BASE, flow=FlowPenalty(0.1, 0.1))
CUT = replace(BASE, pruning=Pruning("l1_norm", amount=0.4, samples=64))
HOLD = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def _store_of_its_own(results):
    """No test of this file sees the repository's records."""


def held(spec, root, seconds):
    """Another process that holds the claim on a run for some seconds."""
    with workers.claimed(spec, root) as ours:  # makes the folder
        assert ours
    place = jobs.cache_path("locks", spec, root).with_suffix(".lock")
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(place), str(seconds)], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    return other


def test_a_claim_ends_with_its_process_and_is_of_one_base_and_seed(tmp_path):
    with held(BASE, tmp_path, 600) as other:
        with workers.claimed(BASE, tmp_path) as ours:
            assert not ours
        for free in (SMOOTH, replace(BASE, seed=1)):
            with workers.claimed(free, tmp_path) as ours:
                assert ours
        assert workers.start_job(BASE, [], tmp_path, "cpu", 1, math.inf, wait=False)
        assert store.lookup(BASE, tmp_path) is None, "left to the other call"
        other.kill()  # as the system does it: nothing is cleaned up
    with workers.claimed(BASE, tmp_path) as ours:
        assert ours


def test_two_calls_train_a_run_once(tmp_path, monkeypatch):
    trained, train = [], jobs.train_together
    monkeypatch.setattr(jobs, "train_together", lambda ts, *a, **k: trained.append(ts[0].spec) or train(ts, *a, **k))
    calls = [
        threading.Thread(target=workers.start_job, args=(BASE, [CUT], tmp_path, "cpu", 1, math.inf)) for _ in range(3)
    ]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert trained == [BASE], "the calls that waited found the record and the cut's"
    assert store.lookup(BASE, tmp_path) and store.lookup(CUT, tmp_path)


def test_who_waits_stops_at_its_deadline(tmp_path):
    with held(BASE, tmp_path, 600) as other:
        begun = time.monotonic()
        assert workers.start_job(BASE, [], tmp_path, "cpu", 1, time.monotonic() + 2)
        assert 2 <= time.monotonic() - begun < 120
        other.kill()


def test_a_store_that_cannot_be_written_to_says_so_before_any_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(workers, "run_job", None)
    with pytest.raises(OSError, match="nothing was written"):
        workers.start_job(BASE, [], tmp_path / "file" / "results", "cpu", 1, math.inf)


class Bar:
    def __init__(self):
        self.n = 0

    def update(self, n):
        self.n += n


def deadly(base, cuts, root, device, threads, deadline, keep_weights, wait):
    """A worker that is killed in its first three runs, as the kernel does when memory is short."""
    marks = list(root.glob("mark-*"))
    if len(marks) < int(os.environ["DEATHS"]):
        (root / f"mark-{time.time_ns()}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    jobs.run_job(base, cuts, root, device, threads, deadline)


@pytest.mark.slow
def test_a_killed_worker_is_replaced(tmp_path, monkeypatch):
    jobs.run_job(BASE, [], tmp_path / "alone", "cpu", 1)
    monkeypatch.setenv("DEATHS", "2")
    bar = Bar()
    monkeypatch.setattr(workers, "start_job", deadly)
    workers.on_cores([(BASE, []), (SMOOTH, [])], tmp_path, 1, math.inf, bar)
    assert bar.n == 2 and store.lookup(SMOOTH, tmp_path)
    again, alone = store.lookup(BASE, tmp_path), store.lookup(BASE, tmp_path / "alone")
    assert again["curve"] == alone["curve"]
    assert again["metrics"] | {"latency_ms": 0} == alone["metrics"] | {"latency_ms": 0}


def faulty(base, cuts, root, device, threads, deadline, keep_weights, wait):
    """A worker for which one of the runs is too much."""
    if base == BASE:
        raise ValueError("this run alone")
    jobs.run_job(base, cuts, root, device, threads, deadline)


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "start_job", faulty)
    with pytest.raises(ValueError, match="this run alone"):
        workers.on_cores([(BASE, []), (SMOOTH, []), (replace(BASE, seed=1), [])], tmp_path, 1, math.inf, Bar())
    assert store.lookup(SMOOTH, tmp_path) and store.lookup(replace(BASE, seed=1), tmp_path)


@pytest.mark.slow
def test_workers_that_are_killed_again_and_again_end_the_call(tmp_path, monkeypatch):
    monkeypatch.setenv("DEATHS", "99")
    monkeypatch.setattr(workers, "start_job", deadly)
    with pytest.raises(RuntimeError, match="killed 3 times.*use fewer workers"):
        workers.on_cores([(BASE, [])], tmp_path, 1, math.inf, Bar())
    assert len(list(tmp_path.glob("mark-*"))) == 3


@pytest.mark.slow
def test_what_another_call_is_making_has_its_turn_at_the_end(tmp_path, capsys):
    bar = Bar()
    with held(BASE, tmp_path, 600) as other:
        call = threading.Thread(
            target=workers.on_cores, args=([(BASE, []), (SMOOTH, [])], tmp_path, 1, math.inf, bar), daemon=True
        )
        call.start()
        while store.lookup(SMOOTH, tmp_path) is None or "others are making" not in capsys.readouterr().err:
            time.sleep(0.1)
        assert store.lookup(BASE, tmp_path) is None and bar.n == 1
        other.kill()
    call.join(600)
    assert store.lookup(BASE, tmp_path) and bar.n == 2
