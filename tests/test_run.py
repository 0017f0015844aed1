"""Running the catalogue: what is stored is reused, what is killed goes on, what cannot be written says so."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ffrlib import checkpoint, cluster, files, gpu, jobs, run, store, together, training, workers
from ffrlib.fetch import SOURCES
from ffrlib.run import Summary, cache_path, jobs_of, run_specs
from ffrlib.spec import FlowPenalty, Pruning, Recipe, RunSpec, WeightPenalty, base_of

BASE = RunSpec(train_size=200, recipe=Recipe(epochs=2, batch_size=50))
SMOOTH = replace(BASE, flow=FlowPenalty(0.1, 0.1))


def cut(base=BASE, **options) -> RunSpec:
    return replace(base, pruning=Pruning(**{"score": "l1_norm", "amount": 0.4, "samples": 64} | options))


def run_quietly(specs, root, **options) -> Summary:
    return run_specs(specs, root, progress=False, **options)


@pytest.fixture(autouse=True)
def _store_of_its_own(results):
    """No test of this file sees the repository's records."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store with BASE's record and its weights; to be read, or copied from."""
    root = tmp_path_factory.mktemp("trained")
    run_quietly([BASE, cut(epochs=1)], root)
    return root


@pytest.fixture
def root(trained, tmp_path):
    """A store that holds BASE's record and weights alone."""
    for path in (store.record_path(BASE, tmp_path), cache_path("weights", BASE, tmp_path)):
        path.parent.mkdir(parents=True)
        path.write_bytes((trained / path.relative_to(tmp_path)).read_bytes())
    return tmp_path


def without_time(record: dict) -> dict:
    kept = {name: record[name] for name in ("settings", "status", "curve", "metrics")}
    return {**kept, "metrics": {k: v for k, v in record["metrics"].items() if k != "latency_ms"}}


# -- what is stored is reused ------------------------------------------------------------------------------------------
def test_a_run_is_made_once(root):
    before = store.record_path(BASE, root).stat().st_mtime_ns
    assert run_quietly([BASE, BASE], root) == Summary(reused=1)
    assert run_quietly([SMOOTH, BASE], root) == Summary(reused=1, trained=1)
    assert run_quietly([SMOOTH, BASE], root) == Summary(reused=2)
    assert store.record_path(BASE, root).stat().st_mtime_ns == before


def test_a_record_holds_what_was_promised(trained):
    record = store.lookup(BASE, trained)
    assert record["status"] == "finished" and len(record["curve"]["loss"]) == 2
    for name in ("test_accuracy", "validation_accuracy", "zeroed_test_accuracy"):
        assert 0 <= record["metrics"][name] <= 100
    made = record["provenance"]
    assert (
        made["device"] == "cpu"
        and made["precision"] == "float32"
        and made["stacking"] == "one"
        and made["threads"] == 1
    )


def test_the_same_run_again_gives_the_same_record(trained, tmp_path):
    run_quietly([BASE], tmp_path)
    assert without_time(store.lookup(BASE, tmp_path)) == without_time(store.lookup(BASE, trained))


@pytest.mark.slow
def test_workers_compute_what_one_process_computes(trained, tmp_path):
    assert run_quietly([BASE, SMOOTH], tmp_path, workers=2) == Summary(trained=2)
    assert without_time(store.lookup(BASE, tmp_path)) == without_time(store.lookup(BASE, trained))


def test_jobs_keep_the_order_of_priority(root):
    """A base has a turn of its own, and one with all its cuts where the first of them has its turn."""
    other, late = replace(BASE, seed=1), replace(BASE, seed=2)
    found, reused = jobs_of([cut(), BASE, cut(other), cut(amount=0.6), other, cut()], root)
    assert reused == 1 and found == [(BASE, [cut(), cut(amount=0.6)]), (other, [cut(other)])]
    found, _ = jobs_of([other, late, SMOOTH, cut(other), cut(SMOOTH), cut(other, amount=0.6), cut(late)], root)
    cuts = (other, [cut(other), cut(other, amount=0.6)]), (SMOOTH, [cut(SMOOTH)]), (late, [cut(late)])
    assert found == [(other, []), (late, []), (SMOOTH, []), *cuts]
    assert jobs_of([late, other, cut(other)], root)[0] == [(late, []), (other, [cut(other)])]
    assert jobs_of([], root) == ([], 0)


def test_stale_records_are_kept_unless_asked(root, monkeypatch):
    path, weights = store.record_path(BASE, root), cache_path("weights", BASE, root)
    old = path.read_bytes(), weights.read_bytes()
    monkeypatch.setattr(store, "code_hash", lambda *_: "new code")
    monkeypatch.setattr(store, "_equal_codes", lambda names: ())
    assert jobs_of([BASE], root) == ([], 1)
    monkeypatch.setenv("FFR_STALE", "rerun")
    assert jobs_of([BASE], root) == ([(BASE, [])], 0)
    with monkeypatch.context() as patch:  # it stays until its turn has come
        patch.setenv("FFR_TRAIN", "never")
        assert run_quietly([BASE], root) == Summary(missing=1)
    assert run_quietly([BASE], root, minutes=0) == Summary(missing=1)
    assert (path.read_bytes(), weights.read_bytes()) == old
    assert run_quietly([BASE], root) == Summary(trained=1)
    assert path.read_bytes() != old[0] and not store.lookup(BASE, root)["stale"]
    assert not weights.exists(), "a cut would start from weights that are not those of the record"
    assert run_quietly([BASE], root) == Summary(reused=1)


@pytest.mark.parametrize("end", ["paused", "interrupted", "killed", "unmeasured"])
def test_what_is_to_be_made_anew_stays_where_the_new_run_does_not_end(root, monkeypatch, end):
    run_quietly([cut()], root)
    kept = {path: path.read_bytes() for path in [*root.rglob("*.json"), cache_path("weights", BASE, root)]}
    assert len(kept) == 3
    with monkeypatch.context() as patch:

        def stop(*job):
            left = [path.suffix for path in kept if path.exists()]
            assert left == [".npz"] * (end == "unmeasured"), "made anew with the old ones in place"
            if end == "killed":
                patch.setattr(Path, "replace", None)  # nothing can come back any more
            if end != "paused":
                raise KeyboardInterrupt

        patch.setattr(store, "code_hash", lambda *_: "new code")
        patch.setattr(store, "_equal_codes", lambda names: ())
        patch.setenv("FFR_STALE", "rerun")
        if end == "unmeasured":  # the weights are saved by then, the record is not
            patch.setattr(jobs.measure, "report", lambda *a: stop())
        else:
            patch.setattr(workers, "run_job", stop)
        try:
            workers.start_job(BASE, [cut()], root, "cpu", 1, float("inf"))
        except (KeyboardInterrupt, TypeError):
            assert end != "paused"
    if end == "killed":
        assert not any(path.exists() for path in kept)
        run_quietly([BASE, cut()], root)
    assert {path: path.read_bytes() for path in kept} == kept and not [*root.rglob("replaced/**/*.*")]


def test_records_that_a_user_restored_keep_their_weights(root, monkeypatch):
    """After a kill the record is fetched back by hand, say by git, before the next call: it is not a new one."""
    record, weights = store.record_path(BASE, root), cache_path("weights", BASE, root)
    old = record.read_bytes(), weights.read_bytes()
    aside = [root / "cache" / "replaced" / path.relative_to(root) for path in (record, weights)]
    for path, content in zip(aside, old):
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    weights.write_bytes(b"of a run that was not measured")
    workers.bring_back(BASE, [], root)
    assert (record.read_bytes(), weights.read_bytes()) == old and not any(path.exists() for path in aside)


def test_ctrl_c_brings_back_what_workers_had_set_aside(tmp_path, monkeypatch):
    short, long = replace(BASE, seed=1), replace(BASE, recipe=replace(BASE.recipe, epochs=3000))
    for spec in (short, long):
        jobs.save(spec, "finished", {"test_accuracy": 50.0}, "cpu", tmp_path)
        record = json.loads((path := store.record_path(spec, tmp_path)).read_text())
        record["provenance"]["code"] = "0" * 12
        path.write_text(json.dumps(record))
    old = path.read_bytes()

    class Bar:
        def update(self, n):
            assert not path.exists(), "the longer run has not begun, or has ended"
            raise KeyboardInterrupt

    monkeypatch.setenv("FFR_STALE", "rerun")
    with pytest.raises(KeyboardInterrupt):
        workers.on_cores([(short, []), (long, [])], tmp_path, 2, float("inf"), Bar())
    assert path.read_bytes() == old and store.lookup(short, tmp_path)["provenance"]["code"] != "0" * 12


def test_short_memory_costs_no_weights(root, monkeypatch):
    weights = cache_path("weights", BASE, root)
    for error in (RuntimeError("can't allocate memory: 1 GB"), PermissionError(13, "Permission denied")):
        monkeypatch.setattr(cluster.removal, "load_pruned", lambda path, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            cluster.drop_unreadable(weights)
    assert weights.exists()


def test_weights_that_cannot_be_read_are_made_again(root, capsys):
    weights = cache_path("weights", BASE, root)
    whole = weights.read_bytes()
    for damaged in (b"", whole[:1000], whole.replace(b"norms", b"morns")):
        weights.write_bytes(damaged)
        store.record_path(cut(), root).unlink(missing_ok=True)
        assert run_quietly([cut()], root) == Summary(trained=1)
        assert "cannot be read" in capsys.readouterr().err
        assert weights.read_bytes() == whole, "the same run, bit for bit"


def test_nothing_is_trained_when_told_so(root, monkeypatch, tmp_path):
    monkeypatch.setenv("FFR_TRAIN", "never")
    monkeypatch.setenv("FFR_SUMMARY", str(tmp_path / "summary"))
    monkeypatch.setattr(run, "start_job", None)
    assert run_quietly([BASE, SMOOTH, cut(replace(BASE, seed=1))], root) == Summary(reused=1, missing=3)
    assert json.loads((tmp_path / "summary").read_text()) == {"reused": 1, "trained": 0, "diverged": 0, "missing": 3}


def test_a_damaged_record_stops_the_call_and_is_named(root):
    path = store.record_path(BASE, root)
    path.write_text(path.read_text()[:-9])
    with pytest.raises(ValueError, match="damaged") as caught:
        run_quietly([BASE, SMOOTH], root)
    assert str(path) in str(caught.value) and store.lookup(SMOOTH, root) is None


def test_a_wrong_device_is_named(root):
    with pytest.raises(ValueError, match="'gpu'.*'cpu', 'cuda'"):
        run_quietly([SMOOTH], root, device="gpu")


# -- cutting -----------------------------------------------------------------------------------------------------------
CUTS = {
    "threshold": cut(budget="threshold", amount=0.06),
    "channel_share": cut(epochs=1),
    "channel_share by layer": cut(scope="layer", amount=0.5),
    "macs_share": cut(budget="macs_share", score="bn_scale"),
    "parameter_share": cut(budget="parameter_share", score="taylor"),
    "loss_tolerance": cut(budget="loss_tolerance", score="loss_increase", amount=0.2),
    "weight_share": cut(score="magnitude", budget="weight_share", amount=0.7, epochs=1),
    "scratch": cut(score="random", after="scratch"),
}


@pytest.mark.parametrize("spec", CUTS.values(), ids=CUTS)
def test_a_trained_net_is_cut_by_each_budget(spec, root):
    assert run_quietly([spec], root) == Summary(trained=1)
    record, base = store.lookup(spec, root), store.lookup(BASE, root)
    m, p = record["metrics"], spec.pruning
    assert record["status"] == "finished" and m["base_test_accuracy"] == base["metrics"]["test_accuracy"]
    assert 0 <= m["cut_test_accuracy"] <= 100 and 0 <= m["test_accuracy"] <= 100
    if p.budget == "weight_share":
        assert m["weights_left"] == pytest.approx(0.3, abs=1e-3)
        return
    assert m["worst_deviation"] < 1e-4 and 0 < m["parameters_left"] <= m["parameters"] and len(m["widths"]) == 6
    if p.budget == "macs_share":
        assert 0.5 < m["macs_left"] / m["macs"] <= 0.6
    if p.budget == "parameter_share":
        assert 0.5 < m["parameters_left"] / m["parameters"] <= 0.6
    if p.scope == "layer":
        assert m["widths"] == [8] * 5 + [16]
    if p.epochs == 0 and p.after == "finetune":
        assert m["test_accuracy"] == m["cut_test_accuracy"]
    if p.after == "scratch":
        assert len(record["curve"]["loss"]) == BASE.recipe.epochs
    assert len(record["curve"].get("loss", [])) == (BASE.recipe.epochs if p.after == "scratch" else p.epochs)


def test_a_cut_alone_brings_its_base(tmp_path):
    assert run_quietly([cut()], tmp_path) == Summary(trained=2)
    assert store.lookup(BASE, tmp_path) and store.lookup(cut(), tmp_path)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_base_is_trained_once_for_cuts_that_come_later(workers, tmp_path, trained, monkeypatch):
    other = replace(BASE, seed=1)
    specs = [BASE, other, cut(epochs=1), cut(other)]
    assert len(jobs_of(specs, tmp_path)[0]) == 4
    if workers == 1:
        count, train = [], jobs.train_together
        monkeypatch.setattr(jobs, "train_together", lambda ts, *a, **k: count.append(ts[0].spec) or train(ts, *a, **k))
        for base, cuts in jobs_of(specs, tmp_path)[0]:
            jobs.run_job(base, cuts, tmp_path, keep_weights=True)
        assert count == [BASE, other, replace(BASE, recipe=replace(BASE.recipe, epochs=1, lr=cut().pruning.lr))]
    else:
        assert run_quietly(specs, tmp_path, workers=2) == Summary(trained=4)
    assert without_time(store.lookup(cut(epochs=1), tmp_path)) == without_time(store.lookup(cut(epochs=1), trained))


def test_a_fault_while_scoring_is_no_result(root, monkeypatch):
    monkeypatch.setattr(jobs.criteria, "scores", lambda *a: {}["no such score"])
    with pytest.raises(KeyError):
        run_quietly([cut()], root)
    monkeypatch.setattr(jobs.criteria, "scores", lambda *a: int("a fault"))
    with pytest.raises(ValueError, match="a fault"):
        run_quietly([cut()], root)
    assert store.lookup(cut(), root) is None


def test_a_base_whose_weights_are_gone_is_trained_again_and_not_counted(root, trained):
    cache_path("weights", BASE, root).unlink()
    before = store.record_path(BASE, root).read_bytes()
    assert run_quietly([cut(epochs=1)], root) == Summary(trained=1)
    assert store.record_path(BASE, root).read_bytes() == before
    assert without_time(store.lookup(cut(epochs=1), root)) == without_time(store.lookup(cut(epochs=1), trained))


def test_a_diverged_base_and_its_cuts_have_records_that_say_so(tmp_path):
    wild = replace(BASE, recipe=replace(BASE.recipe, lr=1e20), weight=WeightPenalty("l1", 0.25))
    assert run_quietly([wild, cut(wild)], tmp_path) == Summary(trained=2, diverged=2)
    for spec in (wild, cut(wild)):
        record = store.lookup(spec, tmp_path)
        assert record["status"] == "diverged" and set(record["metrics"]) == {"failure"}
        assert record["metrics"]["failure"]["epoch"] == 1 and record["metrics"]["failure"]["strength"] == {
            "weight": 0.25
        }
    assert run_quietly([wild, cut(wild)], tmp_path) == Summary(reused=2)


def test_a_run_goes_on_with_the_threads_that_it_had(root, monkeypatch):
    """Each run by itself, a base and its cuts; `threads` is for those that were not begun."""
    used, spec, before = [], cut(epochs=1), torch.get_num_threads()
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    jobs.set_threads(spec, root, 3)
    jobs.set_threads(spec, root, 0)
    monkeypatch.setattr(checkpoint, "threads", lambda path: 2)
    jobs.set_threads(spec, root, 3)
    assert used == [3, 3] and before == torch.get_num_threads(), "a checkpoint that is not there was not asked"
    path = cache_path("checkpoints", spec, root)
    for place in (path, path.with_stem(f"{path.stem}-01234567")):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        jobs.set_threads(spec, root, 3)
        place.unlink()
    assert used == [3, 3, 2, 2]


# -- cut off -----------------------------------------------------------------------------------------------------------
def test_no_time_left_starts_nothing(tmp_path):
    assert run_quietly([BASE, SMOOTH], tmp_path, minutes=0, workers=2) == Summary(missing=2)
    assert run_quietly([BASE], tmp_path, minutes=0) == Summary(missing=1)
    assert [f for f in tmp_path.rglob("*") if f.is_file()] == []


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now

    def pass_by(self, seconds):
        self.now += seconds


def test_time_runs_out_within_a_run_and_it_goes_on_later(trained, tmp_path, monkeypatch):
    """A clock that jumps past the limit after each epoch: the first call pauses, the second finishes."""
    clock, end = Clock(), training.Trainer.end_epoch

    def slow(trainer):
        end(trainer)
        clock.now += 100

    monkeypatch.setattr(together, "time", clock)
    monkeypatch.setattr(run, "time", clock)
    monkeypatch.setattr(jobs, "time", clock)
    monkeypatch.setattr(workers, "time", clock)
    monkeypatch.setattr(training.Trainer, "end_epoch", slow)
    assert run_quietly([BASE], tmp_path, minutes=1) == Summary(missing=1)
    assert cache_path("checkpoints", BASE, tmp_path).exists()
    clock.now = 0.0
    assert run_quietly([BASE], tmp_path, minutes=3) == Summary(trained=1)
    assert not cache_path("checkpoints", BASE, tmp_path).exists()
    assert without_time(store.lookup(BASE, tmp_path)) == without_time(store.lookup(BASE, trained))


def test_a_cut_that_cannot_end_in_time_leaves_no_record(root, monkeypatch):
    monkeypatch.setattr(together, "epoch_seconds", lambda trainers: 1e6)
    assert run_quietly([cut(epochs=1)], root, minutes=5) == Summary(missing=1)
    assert store.lookup(cut(epochs=1), root) is None


@pytest.mark.parametrize("after", ["finetune", "scratch"])
def test_a_cut_pauses_at_an_epoch_and_goes_on_from_there(after, root, tmp_path_factory, monkeypatch):
    spec, end, seen = cut(epochs=2, after=after), training.Trainer.end_epoch, []
    monkeypatch.setattr(training.Trainer, "end_epoch", lambda t: end(t) or seen.append(t.epoch))
    whole = tmp_path_factory.mktemp("whole")
    assert run_quietly([spec], whole) == Summary(trained=2)
    seen.clear()
    clock = Clock()
    clock.pass_by(time.monotonic())
    with monkeypatch.context() as patch:  # time for one epoch
        patch.setattr(together, "time", clock)
        patch.setattr(training.Trainer, "end_epoch", lambda t: end(t) or seen.append(t.epoch) or clock.pass_by(2000))
        jobs.run_job(BASE, [spec], root, deadline=clock.now + 1000)
    assert seen == [1] and store.lookup(spec, root) is None and len(jobs.checkpoints(BASE, [spec], root)) == 1
    assert run_quietly([spec], root) == Summary(trained=1)
    assert seen == [1, 2] and jobs.checkpoints(BASE, [spec], root) == []
    assert without_time(store.lookup(spec, root)) == without_time(store.lookup(spec, whole))


def test_a_checkpoint_of_other_channels_is_no_start_for_a_cut(root, monkeypatch):
    """On a GPU the scores of two calls can differ in their last digits, and so the channels that are cut."""
    used, scores, train = [], jobs.criteria.scores, jobs.train_together
    monkeypatch.setattr(jobs, "train_together", lambda ts, paths, **k: used.append(paths[0]) or train(ts, paths, **k))
    for score in ("l1_norm", "random", "random"):
        monkeypatch.setattr(jobs.criteria, "scores", lambda name, *a, as_if=score: scores(as_if, *a))
        assert run_quietly([cut(epochs=1)], root) == Summary(trained=1)
        store.record_path(cut(epochs=1), root).unlink()
    assert used[0] != used[1] == used[2]


MAIN = """
import math, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests were started behind a shell's &
from dataclasses import replace
from pathlib import Path
from ffrlib import catalogue, run
from ffrlib.spec import Recipe, RunSpec
catalogue.specs = lambda *a: [RunSpec(seed=k, recipe=Recipe(epochs=900)) for k in range({n})]
run.main(sys.argv[1:])
"""


def start_main(code: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=files.REPOSITORY, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "FFR_CHECKPOINT_SECONDS": "0"},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("runs", [1, 3], ids=["one run", "workers"])
def test_ctrl_c_gives_one_message_and_leaves_a_checkpoint_whole(runs, tmp_path):
    child = start_main(MAIN.format(n=runs), "--out", str(tmp_path / "out"), "--workers", "2")
    folder, said = tmp_path / "out" / "cache" / "checkpoints", ""
    while "runs on cpu" not in said and child.poll() is None:
        said += child.stderr.read(1)
    while not list(folder.rglob("*.npz")) and child.poll() is None:
        time.sleep(0.1)
    time.sleep(1)
    assert child.poll() is None
    os.killpg(child.pid, signal.SIGINT)  # what a terminal does: the whole process group
    out, err = child.communicate(timeout=600)
    assert child.returncode == 1 and err.strip().splitlines()[-1].startswith("interrupted; finished records")
    assert "Traceback" not in err
    for path in folder.rglob("*.npz"):
        assert json.loads(bytes(np.load(path)["head"]))["epoch"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2], ids=["one run", "workers"])
def test_killed_in_the_middle_the_same_command_gives_the_same_records(count, tmp_path):
    """kill -9 of the command and its workers, several times, once a run is further than any was when last killed."""
    specs = [replace(BASE, seed=k, recipe=replace(BASE.recipe, epochs=200)) for k in range(count)]
    moments = random.Random(os.urandom(4).hex())
    code = MAIN.format(n=0).replace("range(0)", f"range({count})").replace(
        "RunSpec(seed=k, recipe=Recipe(epochs=900))", repr(specs[0]).replace("seed=0", "seed=k"))  # fmt: skip
    code = code.replace("import Recipe, RunSpec", "import *")
    out, kills = tmp_path / "out", 0
    paths = [cache_path("checkpoints", spec, out) for spec in specs]
    reached = [0] * count
    while kills < 4 - count:
        child = start_main(code, "--out", str(out), "--workers", str(count))
        while child.poll() is None and max(map(epoch_of, paths)) <= max(reached):
            time.sleep(0.02)
        if child.poll() is not None:
            break
        time.sleep(moments.uniform(0, 0.1))  # in the middle of a step, of a checkpoint, of anything
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        kills += 1
        reached = [epoch_of(path) for path in paths]
    assert kills >= 2 and max(reached) >= 2
    done = start_main(code, "--out", str(out), "--workers", str(count))
    assert done.communicate()[0].strip() == f"0 records reused, {count} trained"
    for spec in specs:
        run_quietly([spec], tmp_path / "alone", workers=1)
        assert without_time(store.lookup(spec, out)) == without_time(store.lookup(spec, tmp_path / "alone"))


def epoch_of(path: Path) -> int:
    try:
        with np.load(path) as file:
            return json.loads(bytes(file["head"]))["epoch"]
    except FileNotFoundError:
        return 0


def alive(process: int) -> bool:
    """Whether it runs: a process that nobody has waited for is still listed, as a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux which processes run")
def test_workers_end_with_the_process_that_started_them(tmp_path):
    child = start_main(MAIN.format(n=3), "--out", str(tmp_path / "out"), "--workers", "2")
    folder = tmp_path / "out" / "cache" / "checkpoints"
    while not list(folder.rglob("*.npz")) and child.poll() is None:
        time.sleep(0.1)
    known = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    started = [int(process) for process in known if alive(int(process))]
    assert len(started) >= 2
    child.kill()
    child.wait()
    end = time.monotonic() + 300
    while any(map(alive, started)) and time.monotonic() < end:
        time.sleep(0.1)
    left = [process for process in started if alive(process)]
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert left == []


@pytest.mark.slow
@pytest.mark.parametrize("plan", [[], ["--plan"]])
def test_a_misspelt_net_or_a_number_below_none_is_one_sentence(plan):
    with pytest.raises(SystemExit, match="--model is 'digits-cnn'.*did you mean 'digits_cnn'"):
        run.main([*plan, "--model", "digits-cnn"])
    with pytest.raises(SystemExit, match="--workers is -3"):
        run.main([*plan, "--workers", "-3"])
    with pytest.raises(SystemExit, match="seeds is -1"):
        run.main([*plan, "--seeds", "-1"])


def test_the_command_line_packs_what_must_travel(tmp_path, monkeypatch, capsys):
    from ffrlib import catalogue

    monkeypatch.setattr(catalogue, "specs", lambda scale, experiment, seeds=0: [BASE, SMOOTH])
    out = tmp_path / "out"
    run.main(["--out", str(out), "--model", "digits_cnn", "--workers", "1"])
    assert "2 trained" in capsys.readouterr().out
    with tarfile.open(out / "records.tar.gz") as archive:
        names = sorted(archive.getnames())
        archive.extractall(tmp_path / "other", filter="data")
    assert names == sorted(str(store.record_path(s, out).relative_to(out)) for s in (BASE, SMOOTH))
    assert store.lookup(SMOOTH, tmp_path / "other")["spec"] == SMOOTH
    run.main(["--out", str(out), "--model", "vgg16"])
    assert "0 trained" in capsys.readouterr().out


def test_what_is_finished_is_packed_after_an_error_and_the_plan_knows_it(results, tmp_path, monkeypatch, capsys):
    from ffrlib import catalogue

    monkeypatch.setattr(catalogue, "specs", lambda scale, experiment, seeds=0: [BASE, SMOOTH])
    make = run.run_specs

    def broken(specs, root, *_, **__):
        make(specs[:1], root, progress=False)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(run, "run_specs", broken)
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match="out of memory"):
        run.main(["--out", str(out)])
    with tarfile.open(out / "records.tar.gz") as archive:
        assert archive.getnames() == [store.record_path(BASE, out).relative_to(out).as_posix()]
    for more, left in (([], 2), (["--out", str(out)], 1)):
        run.main(["--plan", "--experiment", "1_hgsr_criteria", *more])
        assert f"{left} of    2 runs to make" in capsys.readouterr().out


def test_the_weights_of_a_base_travel_so_that_its_cuts_need_no_training(trained, tmp_path, monkeypatch):
    from ffrlib import catalogue

    out = tmp_path / "out"
    for path in (store.record_path(BASE, out), cache_path("weights", BASE, out)):
        path.parent.mkdir(parents=True)
        path.write_bytes((trained / path.relative_to(out)).read_bytes())
    monkeypatch.setattr(catalogue, "specs", lambda scale, experiment, seeds=0: [BASE, cut()])
    run.main(["--out", str(out), "--model", "vgg16"])  # nothing to run: it packs what is there
    for name in ("records", "weights"):
        with tarfile.open(out / f"{name}.tar.gz") as archive:
            archive.extractall(tmp_path / "other", filter="data")
    monkeypatch.setattr(jobs, "train_together", None)
    assert run_quietly([cut()], tmp_path / "other") == Summary(trained=1)
    run_quietly([cut()], out)
    run.main(["--out", str(out), "--model", "vgg16"])
    assert not (out / "weights.tar.gz").exists(), "no cut is to come"


def test_a_checkpoint_travels(trained, tmp_path):
    paused, images = tmp_path / "a", jobs.images_of(BASE, "cpu")
    trainer = training.Trainer(BASE, images, observe=jobs.observer(images, torch.float32))
    trainer.begin_epoch()
    for _ in range(trainer.steps):
        trainer.advance()
    trainer.end_epoch()
    checkpoint.save(trainer, cache_path("checkpoints", BASE, paused))
    run.pack(paused, "checkpoints.tar.gz", "cache/checkpoints")
    with tarfile.open(paused / "checkpoints.tar.gz") as archive:
        archive.extractall(tmp_path / "b", filter="data")
    assert cache_path("checkpoints", BASE, tmp_path / "b").exists()
    assert run_quietly([BASE], tmp_path / "b") == Summary(trained=1)
    assert without_time(store.lookup(BASE, tmp_path / "b")) == without_time(store.lookup(BASE, trained))


def test_packing_is_whole_or_not_at_all_and_leaves_out_half_written_files(root, monkeypatch):
    run.pack(root, "records.tar.gz", "runs")
    before = (root / "records.tar.gz").read_bytes()
    (store.record_path(BASE, root).parent / ".half.json.xyz").write_text("{")
    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "add", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.pack(root, "records.tar.gz", "runs")
    assert (root / "records.tar.gz").read_bytes() == before
    run.pack(root, "records.tar.gz", "runs")
    with tarfile.open(root / "records.tar.gz") as archive:
        assert archive.getnames() == [store.record_path(BASE, root).relative_to(root).as_posix()]


def test_a_store_of_its_own_gets_no_second_record_of_a_base(trained, results, tmp_path, monkeypatch):
    from ffrlib import catalogue

    for spec in (BASE, cut(epochs=1)):
        store.record_path(spec).parent.mkdir(parents=True, exist_ok=True)
        store.record_path(spec).write_bytes(store.record_path(spec, trained).read_bytes())
    monkeypatch.setattr(catalogue, "specs", lambda scale, experiment, seeds=0: [BASE, cut(epochs=1), cut(amount=0.6)])
    run.main(["--out", str(tmp_path / "out")])
    assert store.lookup(cut(amount=0.6), tmp_path / "out") and not store.lookup(cut(epochs=1), tmp_path / "out")
    assert store.record_path(BASE, tmp_path / "out").read_bytes() == store.record_path(BASE).read_bytes()


# -- what cannot be written --------------------------------------------------------------------------------------------
def test_a_full_disk_is_one_message_and_the_call_can_be_repeated(root, monkeypatch, capsys):
    from ffrlib import catalogue

    monkeypatch.setattr(catalogue, "specs", lambda scale, experiment, seeds=0: [SMOOTH])

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(SystemExit) as caught:
        run.main(["--out", str(root)])
    text = str(caught.value)
    assert "No space left on device; nothing was written" in text and str(store.record_path(SMOOTH, root)) in text
    assert "\n" not in text and store.lookup(SMOOTH, root) is None and store.lookup(BASE, root)
    monkeypatch.undo()
    assert run_quietly([SMOOTH], root) == Summary(trained=1)


def test_a_read_only_folder_is_named(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files.tempfile, "NamedTemporaryFile", refuse)
    with pytest.raises(OSError, match="Read-only file system; nothing was written"):
        run_quietly([BASE], tmp_path)


MEMORY = (
    MemoryError("cannot allocate"), torch.OutOfMemoryError("CUDA out of memory. Tried"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
)  # fmt: skip


@pytest.mark.parametrize("error", MEMORY)
def test_lack_of_memory_is_one_sentence(error, tmp_path, monkeypatch):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(run, "start_job", fail)
    with pytest.raises(RuntimeError, match="out of memory .*use fewer workers"):
        run_quietly([BASE], tmp_path)


def test_a_cut_out_of_reach_is_a_result(root):
    spec = cut(budget="macs_share", amount=0.9999)
    assert run_quietly([spec], root) == Summary(trained=1)
    record = store.lookup(spec, root)
    assert record["status"] == "unreachable" and "0.9999" in record["metrics"]["failure"]["reason"]


def test_portable_is_what_fits_in_16_mb():
    assert jobs.portable(RunSpec("cifar10", "resnet56", "A")) and not jobs.portable(RunSpec("cifar10", "vgg16"))


def test_plain_takes_penalties_and_the_cut_away():
    spec = cut(replace(SMOOTH, weight=WeightPenalty("l1", 1e-3)))
    assert jobs.plain(spec) == BASE and base_of(spec).flow == SMOOTH.flow
    assert jobs.plain(spec, epochs=7).recipe.epochs == 7


# -- on a GPU: what goes together needs none to be told ----------------------------------------------------------------
@pytest.fixture
def groups(root, monkeypatch):
    """`groups(specs)`: which jobs `on_gpu` would run at once, one group after the other, if none was ever finished."""
    taken = []
    monkeypatch.setattr(gpu, "run_group", lambda group, *a: taken.append(group))

    def groups_of(specs, together=0):
        taken.clear()
        gpu.on_gpu(jobs_of(specs, root)[0], root, "cuda", together, float("inf"), None)
        return [[base if not cuts else (base, cuts) for base, cuts in group] for group in taken]

    return groups_of


def test_what_has_one_shape_trains_together(groups):
    others = [replace(BASE, seed=k) for k in (1, 2, 3)]
    wide = replace(BASE, seed=1, width=2.0)
    assert groups([others[0], wide, SMOOTH, *others[1:]], together=3) == [
        [others[0], SMOOTH, others[1]], [wide], [others[2]]]  # fmt: skip
    assert groups([cut(), others[0], SMOOTH]) == [[(BASE, [cut()])], [others[0], SMOOTH]], "its base needs no training"
    later = cut(others[0])
    assert groups([others[0], wide, others[1], later]) == [[others[0], others[1]], [wide]], (
        "a paused base cannot be cut"
    )


def test_what_is_made_anew_trains_together(groups, root, monkeypatch):
    others = [replace(BASE, seed=k) for k in (1, 2)]
    for spec in others:
        store.record_path(spec, root).write_bytes(b"")
    stale = {"stale": True, "status": "finished"}
    monkeypatch.setattr(store, "lookup", lambda spec, root=None: stale)
    assert groups([BASE, *others]) == []
    monkeypatch.setenv("FFR_STALE", "rerun")
    assert groups([BASE, *others]) == [[BASE, *others]]


def test_a_cut_that_fails_does_not_stop_those_of_other_bases(root, monkeypatch):
    cut_bases = []

    def cuts_of(base, cuts, *more):
        cut_bases.append(base)
        if base == BASE:
            raise ValueError("a score that is no number")

    monkeypatch.setattr(gpu, "run_cuts", cuts_of)
    monkeypatch.setattr(gpu, "needs_training", lambda *a: False)
    bar = run.tqdm(disable=True)
    with pytest.raises(ValueError, match="no number"):
        gpu.run_group([(BASE, [cut()]), (SMOOTH, [cut(SMOOTH)])], root, "cpu", float("inf"), bar)
    assert cut_bases == [BASE, SMOOTH]


# -- on a GPU ----------------------------------------------------------------------------------------------------------
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_runs_go_together(tmp_path):
    specs = [BASE, SMOOTH, replace(BASE, seed=1), cut(epochs=1), replace(BASE, recipe=replace(BASE.recipe, lr=1e20))]
    assert run_quietly(specs, tmp_path, device="cuda") == Summary(trained=5, diverged=1)
    record = store.lookup(BASE, tmp_path)
    assert record["provenance"]["stacking"] == "streams:3" and record["provenance"]["device"] != "cpu"
    assert run_quietly(specs, tmp_path, device="cuda") == Summary(reused=5)


def test_runs_without_their_images_or_weights_are_left_out_and_the_others_run(tmp_path, monkeypatch, capsys):
    for name in ("FFR_DATA", "FFR_WEIGHTS"):
        monkeypatch.setenv(name, str(tmp_path / "nowhere"))
    monkeypatch.setenv("FFR_DOWNLOAD", "never")
    monkeypatch.setattr("ffrlib.fetch.REPOSITORY", tmp_path)
    monkeypatch.setattr("ffrlib.models.published.REPOSITORY", tmp_path)
    absent = RunSpec("cifar10", "resnet20", "A", scale="laptop", recipe=Recipe(epochs=1))
    specs = [absent, replace(absent, seed=1), RunSpec(recipe=Recipe(epochs=1))]
    summary = run_specs(specs, tmp_path / "results", progress=False)
    assert (summary.trained, summary.missing) == (1, 2)
    assert capsys.readouterr().err.count("The image set 'cifar10' was not found") == 1
    assert store.lookup(specs[2], tmp_path / "results")["status"] == "finished"


def test_a_set_that_proves_incomplete_stops_no_run_of_another(tmp_path, monkeypatch):
    monkeypatch.setenv("FFR_DATA", str(tmp_path))
    for file in SOURCES["tiny_imagenet"].files:
        path = tmp_path / SOURCES["tiny_imagenet"].folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    tiny, digits = RunSpec("tiny_imagenet", "resnet18_tiny", recipe=Recipe(epochs=1)), RunSpec(recipe=Recipe(epochs=1))
    with pytest.raises(FileNotFoundError):
        run_specs([tiny, digits, replace(digits, seed=1)], tmp_path / "results", workers=1, progress=False)
    assert len(store.load_all(tmp_path / "results")[0]) == 2


def test_a_set_that_proves_incomplete_stops_no_run_of_another_on_a_gpu(tmp_path, monkeypatch):
    begun = []

    def run_group(group, *_):
        begun.append(group[0][0].data)
        if begun == ["tiny_imagenet"]:
            raise FileNotFoundError("a file of tiny_imagenet")

    monkeypatch.setattr(gpu, "run_group", run_group)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)  # as it was, afterwards
    tiny, digits = RunSpec("tiny_imagenet", "resnet18_tiny", recipe=Recipe(epochs=1)), RunSpec(recipe=Recipe(epochs=1))
    with pytest.raises(FileNotFoundError, match="tiny_imagenet"):
        gpu.on_gpu([(tiny, []), (digits, [])], tmp_path / "results", "cuda", 1, float("inf"), None)
    assert begun == ["tiny_imagenet", "digits"]


def test_a_start_from_published_weights_waits_for_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FFR_WEIGHTS", str(tmp_path / "nowhere"))
    monkeypatch.setattr("ffrlib.models.published.REPOSITORY", tmp_path)
    monkeypatch.setattr("ffrlib.run.fetch.locate", lambda name: tmp_path)
    start = RunSpec("cifar10", "resnet56", "A", init="published", scale="laptop", recipe=Recipe(epochs=0))
    summary = run_specs([start], tmp_path / "results", progress=False)
    assert (summary.trained, summary.missing) == (0, 1)
    assert "resnet56-A-cifar10.npz is in none of" in capsys.readouterr().err


@pytest.mark.parametrize("minutes", ["nan", "-3", "0"])
def test_a_time_limit_that_is_none_is_refused(minutes):
    with pytest.raises(SystemExit, match=f"--minutes is {float(minutes)}; allowed: a number of minutes above 0"):
        run.main(["--minutes", minutes])
