"""A real scheduler and real worker processes, on loopback alone: what they send back is what one process computes."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from unittest.mock import Mock

import pytest

from ffrlib import cluster, fetch, files, run, store
from ffrlib.jobs import cache_path
from ffrlib.run import Summary, run_specs
from ffrlib.spec import FlowPenalty, Pruning, Recipe, RunSpec, key

pytest.importorskip("distributed", reason="Dask is not installed: pip install 'dask[distributed]'")

BASE = RunSpec(train_size=200, recipe=Recipe(epochs=2, batch_size=50))
LONG = replace(BASE, recipe=replace(BASE.recipe, epochs=20))
ENDLESS = replace(BASE, recipe=replace(BASE.recipe, epochs=100_000))
CUT = replace(BASE, pruning=Pruning("l1_norm", amount=0.4, samples=64, epochs=1))
SPECS = [LONG, replace(LONG, seed=1), CUT, BASE, replace(BASE, flow=FlowPenalty(0.1, 0.1)), replace(BASE, seed=1)]


def without_time(record: dict) -> dict:
    metrics = {name: value for name, value in record["metrics"].items() if name != "latency_ms"}
    return {name: record[name] for name in ("settings", "status", "curve")} | {"metrics": metrics}


def wait_for(what, seconds=600):
    """The first true value of `what()`."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def address_in(path):
    """The scheduler's address, once its file is whole."""
    try:
        return json.loads(path.read_text())["address"]
    except (FileNotFoundError, json.JSONDecodeError):
        return None


class Cluster:
    """A scheduler and worker processes that this test alone uses, without dashboards."""

    def __init__(self, folder):
        self.folder, self.workers, self.started = folder, [], []
        self.scheduler = self.start("scheduler", "--port", "0", "--scheduler-file", str(folder / "scheduler.json"))
        self.address = wait_for(lambda: address_in(folder / "scheduler.json"))

    def start(self, kind, *options, **environment):
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--host", "127.0.0.1", *options]
        log = (self.folder / f"log-{len(self.started)}").open("w")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(files.REPOSITORY)} | environment
        self.started.append(subprocess.Popen(
            [*command, "--no-dashboard"], cwd=self.folder, env=environment, stdout=log, stderr=log))  # fmt: skip
        return self.started[-1]

    def add_worker(self, threads=1, **environment):
        scratch = self.folder / f"worker-{len(self.workers)}"
        options = ["--nthreads", str(threads), "--no-nanny", "--local-directory", str(scratch)]
        self.workers.append(self.start("worker", self.address, *options, **environment))

    def running(self, number):
        """The folders in which a worker has a run in progress."""
        return list((self.folder / f"worker-{number}").glob("dask-scratch-space/*/tmp*"))

    def kill_worker(self, number):
        """kill -9 in the middle of a run; if the first one is over after half a second, in the next."""
        wait_for(lambda: self.running(number))
        time.sleep(0.5)
        wait_for(lambda: self.running(number))
        os.kill(self.workers[number].pid, signal.SIGKILL)


@pytest.fixture
def dask(tmp_path, results, monkeypatch):
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "1")
    (tmp_path / "dask").mkdir()
    made = Cluster(tmp_path / "dask")
    yield made
    for process in made.started:
        process.kill()
        process.wait()


def on(dask, specs, root=None, **options) -> Summary:
    return run_specs(specs, root, scheduler=dask.address, progress=False, **{"minutes": 30} | options)


@pytest.mark.slow
def test_a_run_that_a_worker_cannot_make_does_not_stop_the_others(dask, results, tmp_path, monkeypatch, capsys):
    dask.add_worker(FFR_DATA=str(tmp_path), FFR_DOWNLOAD="never")
    elsewhere = replace(BASE, data="stl10", model="vgg11_small")  # in no run of the catalogue
    try:
        pytest.skip(f"STL-10 is here, so the worker finds it: {fetch.locate('stl10')}")
    except FileNotFoundError:
        pass
    faulty = replace(BASE, train_size=5000)  # more than there are
    assert on(dask, [elsewhere, BASE]) == Summary(trained=1, missing=1)
    assert "Not run" in capsys.readouterr().err and store.lookup(BASE)
    with pytest.raises(Exception, match="5000"):
        on(dask, [faulty, replace(BASE, seed=1)])
    assert store.lookup(replace(BASE, seed=1))


@pytest.mark.slow
def test_what_one_worker_lacks_another_may_have(dask, results, tmp_path, capsys):
    from distributed import Client

    lines = f"""
        import pathlib
        from ffrlib import cluster
        def run_job(*job):
            pathlib.Path({str(tmp_path / "asked")!r}).touch()
            raise FileNotFoundError("no images here")
        cluster.run_job = run_job"""
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(lines))
    dask.add_worker(PYTHONPATH=os.pathsep.join([str(tmp_path), str(files.REPOSITORY)]))
    specs = [BASE, replace(BASE, seed=1), replace(BASE, seed=2), replace(BASE, seed=3)]
    assert on(dask, specs[:1]) == Summary(missing=1)  # nobody has them
    assert "Not run: no images here" in capsys.readouterr().err
    dask.add_worker()
    with Client(dask.address) as client:
        client.wait_for_workers(2, timeout=60)
    (tmp_path / "asked").unlink()
    assert on(dask, specs) == Summary(trained=4)
    assert (tmp_path / "asked").exists() and "Not run" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_worker_costs_no_record_and_changes_none(dask, results, tmp_path, monkeypatch):
    run_specs(SPECS, tmp_path / "alone", workers=1, progress=False)

    def kill_the_first():  # with a run in progress and another worker to come
        wait_for(lambda: dask.running(0))
        dask.add_worker()
        dask.kill_worker(0)

    dask.add_worker()
    written, killer = [], threading.Thread(target=kill_the_first)
    write = files.write_atomically
    monkeypatch.setattr(cluster, "write_atomically", lambda path, content: written.append(path) or write(path, content))
    killer.start()
    assert on(dask, SPECS) == Summary(trained=6)
    killer.join()
    assert dask.workers[0].wait(60) == -signal.SIGKILL and dask.workers[1].poll() is None
    records = [path for path in written if path.suffix == ".json"]
    assert sorted(records) == sorted(store.record_path(spec) for spec in SPECS)  # each once
    for spec in SPECS:
        assert without_time(store.lookup(spec)) == without_time(store.lookup(spec, tmp_path / "alone"))
    assert store.lookup(CUT)["provenance"]["threads"] == 1
    before = {path: path.stat().st_mtime_ns for path in records}
    assert on(dask, SPECS) == Summary(reused=6)
    assert {path: path.stat().st_mtime_ns for path in records} == before


@pytest.mark.slow
def test_time_runs_out_and_what_was_begun_comes_home(dask, monkeypatch):
    dask.add_worker()
    run_specs([BASE], progress=False)
    assert on(dask, [CUT]) == Summary(trained=1)  # the worker has loaded torch now: no race with that
    waiting = replace(ENDLESS, seed=1)
    before = time.monotonic()
    assert on(dask, [CUT, ENDLESS, waiting], minutes=0.5) == Summary(reused=1, missing=2)
    assert time.monotonic() - before < 150
    assert cache_path("checkpoints", ENDLESS, None).exists()  # waiting's may be there: ENDLESS stops before the limit
    wait_for(lambda: not dask.running(0))
    monkeypatch.setenv("FFR_TRAIN", "never")
    assert on(dask, [CUT, ENDLESS]) == Summary(reused=1, missing=1)


@pytest.mark.slow
def test_what_no_worker_has_begun_in_time_is_given_up(dask, results):
    assert on(dask, [BASE, ENDLESS], minutes=0.03) == Summary(missing=2)
    assert not results.exists() or [f for f in results.rglob("*") if f.is_file()] == []


@pytest.mark.slow
def test_what_a_cluster_lacks_is_one_sentence(dask, tmp_path, monkeypatch):
    dask.add_worker(threads=2)
    with pytest.raises(RuntimeError, match="start it with --nthreads 1"):
        on(dask, [BASE])
    with monkeypatch.context() as patch:
        patch.setattr(store, "code_hash", lambda *_: "other")
        with pytest.raises(RuntimeError, match="another version of ffrlib"):
            on(dask, [BASE])
    dask.workers[0].kill()
    (tmp_path / "empty" / "ffrlib").mkdir(parents=True)
    (tmp_path / "empty" / "ffrlib" / "__init__.py").touch()
    dask.add_worker(PYTHONPATH=str(tmp_path / "empty"))
    with pytest.raises(RuntimeError, match="cannot load ffrlib .*ffrlib.cluster"):
        on(dask, [BASE])
    assert store.lookup(BASE) is None


@pytest.mark.slow
def test_a_run_whose_workers_die_again_and_again_ends_the_call(dask):
    def kill_both():
        dask.add_worker()
        dask.kill_worker(0)
        dask.add_worker()
        dask.kill_worker(1)

    killer = threading.Thread(target=kill_both)
    killer.start()
    with pytest.raises(RuntimeError, match=f"run {key(ENDLESS)}: 2 workers died while it ran, perhaps for lack of"):
        on(dask, [ENDLESS])
    killer.join()


def test_what_ends_as_time_runs_out_comes_home(monkeypatch):
    """The worker has ended a run and the scheduler knows it, this client not yet."""
    running = {Mock(key=name, done=lambda: False): [] for name in ("ended", "waiting")}

    def as_completed(futures, **limits):
        if limits:
            raise TimeoutError
        return iter(futures)

    monkeypatch.setattr("distributed.as_completed", as_completed)
    client = Mock(processing=dict, who_has=lambda futures: {"ended": ["a worker"], "waiting": []})
    assert [future.key for future in cluster.arrivals(client, running, 0.0)] == ["ended"]


@pytest.mark.slow
def test_a_scheduler_that_goes_away_is_one_sentence(dask, tmp_path):
    dask.add_worker()
    killer = threading.Thread(target=lambda: wait_for(lambda: dask.running(0)) and dask.scheduler.kill())
    killer.start()
    with pytest.raises(RuntimeError, match="is gone; finished records are kept"):
        on(dask, [ENDLESS])
    killer.join()


def test_no_scheduler_and_no_dask_are_one_sentence(results, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "PATIENCE", 0.5)
    monkeypatch.setenv("FFR_SCHEDULER", "tcp://127.0.0.1:9")
    with pytest.raises(RuntimeError, match="no Dask scheduler answers at tcp://127.0.0.1:9"):
        run_specs([BASE], progress=False)
    with pytest.raises(SystemExit, match="no Dask scheduler answers at nonsense://"):
        run.main(["--scheduler", "nonsense://x", "--model", "digits_cnn"])
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(RuntimeError, match='Dask is not installed: pip install "dask'):
        run_specs([BASE], progress=False)


def test_a_record_that_comes_back_damaged_or_known_is_not_written(results, tmp_path):
    run_specs([BASE], tmp_path / "a", progress=False)
    sent, path = cluster.contents([BASE], tmp_path / "a"), store.record_path(BASE)
    name = path.relative_to(results).as_posix()
    assert list(sent) == [name]
    with pytest.raises(ValueError, match="damaged"):
        cluster.keep([BASE], results, {name: sent[name][:-9]})
    cluster.keep([BASE], results, {"runs/other.json": sent[name], "../outside": b""})
    assert not results.exists() or [f for f in results.rglob("*") if f.is_file()] == []
    cluster.keep([BASE], results, sent)
    before = path.stat().st_mtime_ns
    cluster.keep([BASE], results, sent)
    assert path.read_bytes() == sent[name] and path.stat().st_mtime_ns == before


def test_the_checkpoint_of_a_cut_travels_and_goes_when_its_record_comes(results, tmp_path):
    run_specs([BASE, CUT], tmp_path, progress=False)
    path = cache_path("checkpoints", CUT, tmp_path)
    path = path.with_stem(f"{path.stem}-0123abcd")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"arrays")
    name, record = (
        path.relative_to(tmp_path).as_posix(),
        store.record_path(CUT, tmp_path).relative_to(tmp_path).as_posix(),
    )
    sent = cluster.contents([BASE, CUT], tmp_path)
    assert sent[name] == b"arrays"
    files = {n: content for n, content in sent.items() if n != record}
    cluster.keep([BASE, CUT], results, files | {f"{name}.exe": b"", name.replace("0123abcd", "../../x"): b""})
    assert (results / name).read_bytes() == b"arrays" and cluster.contents([BASE, CUT], results)[name] == b"arrays"
    assert len(list(results.rglob("*.exe"))) == 0
    cluster.keep([BASE, CUT], results, sent)
    assert store.lookup(CUT) and not (results / name).exists()


def test_what_is_made_anew_neither_travels_nor_stands_in_the_way(results, tmp_path, monkeypatch):
    run_specs([BASE, CUT], progress=False)
    names = set(cluster.contents([BASE, CUT], results))
    assert len(names) == 3  # two records, the weights
    monkeypatch.setattr(store, "code_hash", lambda *_: "new code")
    monkeypatch.setattr(store, "_equal_codes", lambda names: ())
    assert set(cluster.contents([BASE, CUT], results)) == names
    monkeypatch.setenv("FFR_STALE", "rerun")
    assert cluster.contents([BASE, CUT], results) == {}
    run_specs([BASE], tmp_path / "anew", progress=False)
    sent = cluster.contents([BASE], tmp_path / "anew")
    cluster.keep([BASE], results, sent)
    assert [store.record_path(BASE).read_bytes()] == list(sent.values()) and not store.lookup(BASE)["stale"]
