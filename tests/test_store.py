"""The store: a record is whole or absent, and verified when it is read."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ffrlib import files, store
from ffrlib.spec import FlowPenalty, Pruning, Recipe, RunSpec, WeightPenalty, key

RUNS = [
    RunSpec(),
    RunSpec(seed=3),
    RunSpec(weight=WeightPenalty("hierarchical_squared_group_l12", 1e-3)),
    RunSpec("cifar10", "resnet20", "A", scale="laptop", flow=FlowPenalty(0.1, 0.1)),
    RunSpec(pruning=Pruning("l1_norm", "macs_share", 0.5, epochs=3), recipe=Recipe(epochs=2)),
]
METRICS = {"test_accuracy": 91.25, "unstructured_sparsity": 1 / 3, "layer_sparsity": [0.5, 1e-9]}


def save(spec, root, metrics=METRICS, status="finished"):
    made = store.provenance(spec, "cpu", torch.float32, "one", "digest", 1.234)
    return store.save(spec, status, {"loss": [2.0, 1.0]}, metrics, made, root)


@pytest.mark.parametrize("spec", RUNS, ids=store.penalties_label)
def test_round_trip(spec, tmp_path):
    path = save(spec, tmp_path)
    record = store.lookup(spec, tmp_path)
    assert record["spec"] == spec and record["status"] == "finished" and not record["stale"]
    assert record["metrics"]["test_accuracy"] == 91.25 and record["curve"] == {"loss": [2.0, 1.0]}
    assert record["metrics"]["unstructured_sparsity"] == pytest.approx(1 / 3, rel=1e-5)
    assert path.parent == tmp_path / "runs" / spec.scale / f"{spec.data}-{spec.model}{spec.shortcut.lower()}"
    assert path.name.endswith(f"--{key(spec)}-s{spec.seed}.json")
    assert store.lookup(replace(spec, seed=7), tmp_path) is None


def test_paths_differ_between_runs():
    assert len({store.record_path(s, "root") for s in RUNS}) == len(RUNS)


def test_what_made_a_record_stands_in_it(tmp_path):
    save(RUNS[0], tmp_path)
    made = store.lookup(RUNS[0], tmp_path)["provenance"]
    assert {
        "device", "cpu", "threads", "precision", "stacking", "versions", "commit", "dirty", "code", "data", "runner",
        "seconds",
    } == set(made)  # fmt: skip
    assert made["precision"] == "float32" and made["threads"] == torch.get_num_threads() and made["seconds"] == 1.23


def test_a_record_of_other_code_is_stale(tmp_path, monkeypatch):
    save(RUNS[0], tmp_path)
    monkeypatch.setattr(store, "code_hash", lambda *_: "other")
    monkeypatch.setattr(store, "_equal_codes", lambda names: ())
    assert store.lookup(RUNS[0], tmp_path)["stale"]


@pytest.fixture
def versions(monkeypatch):
    """Digests of module `data`, oldest first, the last one the present; changes between them can be stated."""
    caches = (store._equal_digests, store._equal_codes, store.same_numbers)
    monkeypatch.setattr(store, "_syntax_digest", lambda name, found=store._syntax_digest: (
        "c" if name == "data" else found(name)))  # fmt: skip
    [cache.cache_clear() for cache in caches]
    yield ["a", "b", "c"]
    [cache.cache_clear() for cache in caches]


def test_a_change_that_is_shown_to_change_no_number_leaves_records_current(versions, tmp_path, monkeypatch):
    def stale(digest: str, *changes) -> bool:
        """Whether a record made when `data` had this digest is stale, given the changes stated, as "ab" for a to b."""
        stated = [{"module": "data", "before": c[0], "after": c[1]} for c in changes]
        monkeypatch.setattr(store, "same_numbers", lambda: stated)
        [cache.cache_clear() for cache in (store._equal_digests, store._equal_codes)]
        with monkeypatch.context() as patch:
            known = store._syntax_digest
            patch.setattr(store, "_syntax_digest", lambda name: digest if name == "data" else known(name))
            save(RUNS[0], tmp_path)
        return store.lookup(RUNS[0], tmp_path)["stale"]

    assert not stale("c") and stale("b") and stale("a")
    assert not stale("b", "bc") and stale("a", "bc") and stale("b", "ab")
    assert not stale("a", "ab", "bc") and not stale("b", "ab", "bc") and not stale("c", "ab", "bc")
    assert stale("a", "ab", "bx"), "a chain that does not end in the present code"


def test_every_stated_change_leads_to_the_present_code_and_says_why():
    """A statement about code that is gone helps no record: take it away, or state the newer change too."""
    for change in store.same_numbers():
        assert set(change) == {"module", "before", "after", "date", "what", "shown"}
        assert change["before"] in store._equal_digests(change["module"]) and len(change["before"]) == 64
        assert len(change["what"].split()) > 5 and len(change["shown"].split()) > 5


def test_the_code_hash_ignores_comments_and_docstrings_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "REPOSITORY", tmp_path)
    (tmp_path / "ffrlib").mkdir()

    def digest(text):
        (tmp_path / "ffrlib" / "thing.py").write_text(text)
        store._syntax_digest.cache_clear()
        return store._syntax_digest("thing")

    first = digest('"""Words."""\n\n\ndef f(x):\n    """More."""\n    return x + 1\n')
    assert digest('"""Other words."""\ndef f(x):\n    """Others."""\n    return x + 1  # why\n') == first
    assert digest('"""Words."""\n\n\ndef f(x):\n    """More."""\n    return x + 2\n') != first
    store._syntax_digest.cache_clear()


def test_the_code_hash_is_the_same_in_every_python(tmp_path, monkeypatch):
    """A record made with 3.11 is not stale with 3.12, whose syntax trees name one thing more."""
    (tmp_path / "ffrlib").mkdir()
    text = 'class A:\n    """Words."""\n\n    async def f(self, x: int = 1):\n        return f"{x!r}, {self.w:.3f}"\n'
    (tmp_path / "ffrlib" / "thing.py").write_text(text)
    with monkeypatch.context() as patch:
        patch.setattr(store, "REPOSITORY", tmp_path)
        store._syntax_digest.cache_clear()
        digest = store._syntax_digest("thing")
    store._syntax_digest.cache_clear()
    assert digest.startswith("cf91ea9d95cf33ee")


def test_an_older_hash_without_scores_and_budgets_counts_while_these_compute_the_same(monkeypatch):
    plain = RunSpec()
    cut = replace(plain, pruning=Pruning("l1_norm", "macs_share", 0.5))
    older = {s: [n for n in store.modules_of(s) if n not in store.COUNTED_LATER] for s in (plain, cut)}
    short = {s: store._combined(map(store._syntax_digest, names)) for s, names in older.items()}
    assert short[plain] != store.code_hash(plain) and store.same_code(plain, False, short[plain])
    assert not store.same_code(cut, False, short[cut])  # a cut's hash has had them from the start
    for changed in store.COUNTED_LATER:
        with monkeypatch.context() as patch:
            digests = store._equal_digests
            patch.setattr(store, "_equal_digests", lambda name: ("new",) if name == changed else digests(name))  # noqa: B023
            assert not store.same_code(plain, False, short[plain])


def test_the_code_hash_covers_what_a_run_passes_through():
    plain, penalised, cut = RUNS[0], RUNS[2], RUNS[4]
    assert store.code_hash(plain) == store.code_hash(replace(plain, seed=9))
    assert len({store.code_hash(s) for s in (plain, penalised, cut)}) == 3
    assert store.code_hash(plain, gpu=True) != store.code_hash(plain)  # a captured step is another program
    for spec in RUNS:
        for name in store.modules_of(spec):
            assert (files.REPOSITORY / "ffrlib" / f"{name}.py").exists(), name


def change(**values):
    return lambda record: json.dumps(record | values)


def without(name):
    return lambda record: json.dumps({k: v for k, v in record.items() if k != name})


DAMAGES = {
    "cut off": lambda record: json.dumps(record)[:-40],
    "empty": lambda record: "",
    "not JSON": lambda record: "not json",
    "a list": lambda record: "[1, 2]",
    "binary": lambda record: "\x00\x01",
    "no settings": without("settings"),
    "no metrics": without("metrics"),
    "no curve": without("curve"),
    "no status": without("status"),
    "no provenance": without("provenance"),
    "no key": without("key"),
    "other format": change(format=99),
    "other seed": change(seed=5),
    "other scale": change(scale="paper"),
    "other settings": lambda record: json.dumps(record | {"settings": record["settings"] | {"train_size": 5}}),
    "unknown setting": lambda record: json.dumps(record | {"settings": record["settings"] | {"colour": 5}}),
    "settings are a list": change(settings=[1]),
    "provenance is a list": change(provenance=[1]),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_record_is_named_and_never_skipped(damage, tmp_path):
    path = save(RUNS[0], tmp_path)
    good = save(RUNS[1], tmp_path)
    path.write_text(damage(json.loads(path.read_text())))
    with pytest.raises(ValueError, match="damaged") as caught:
        store.lookup(RUNS[0], tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    records, problems = store.load_all(tmp_path)
    assert [r["path"] for r in records] == [str(good)] and [p.path for p in problems] == [str(path)]
    assert str(path) in store.write_index(tmp_path).read_text()


def test_a_record_under_another_name_is_refused(tmp_path):
    path = save(RUNS[0], tmp_path)
    wrong = path.with_name(path.name.replace("-s0", "-s1"))
    path.rename(wrong)
    with pytest.raises(ValueError, match="do not hash to its name"):
        store.read(wrong)


class Full:
    """A file on a disk that is full after the first bytes."""

    def __init__(self, file):
        self.file = file

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        self.file.__enter__()
        return self

    def __exit__(self, *error):
        return self.file.__exit__(*error)

    def write(self, content):
        self.file.write(content[:7])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def full_disk(monkeypatch):
    original = files.tempfile.NamedTemporaryFile
    monkeypatch.setattr(files.tempfile, "NamedTemporaryFile", lambda *a, **k: Full(original(*a, **k)))


def test_a_full_disk_leaves_the_old_record_and_no_rest(tmp_path, full_disk, monkeypatch):
    with pytest.raises(OSError, match="No space left on device; nothing was written") as caught:
        save(RUNS[0], tmp_path)
    assert caught.value.errno == errno.ENOSPC and str(store.record_path(RUNS[0], tmp_path)) in str(caught.value)
    assert [f for f in tmp_path.rglob("*") if f.is_file()] == []
    monkeypatch.undo()
    before = save(RUNS[0], tmp_path).read_bytes()
    monkeypatch.setattr(
        files.os, "replace", lambda *a: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only file system"))
    )
    with pytest.raises(OSError, match="Read-only file system; nothing was written"):
        save(RUNS[0], tmp_path, {"test_accuracy": 1.0})
    assert [f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()] == [before]


def test_an_interruption_while_writing_leaves_nothing(tmp_path):
    def content(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(tmp_path / "a" / "b.bin", content)
    assert list((tmp_path / "a").iterdir()) == []


@given(
    content=st.one_of(
        st.binary(max_size=200), st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=200)
    )
)
def test_what_is_written_is_read(content, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    path = files.write_atomically(folder / "new" / "file", content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert [f.name for f in path.parent.iterdir()] == ["file"]


def test_the_store_folder_can_be_named(monkeypatch, tmp_path):
    monkeypatch.setenv("FFR_RESULTS", str(tmp_path))
    assert files.results_folder() == tmp_path
    monkeypatch.delenv("FFR_RESULTS")
    assert files.results_folder() == files.REPOSITORY / "results"


numbers = st.floats(allow_nan=True, allow_infinity=True)


@given(st.recursive(st.one_of(numbers, st.integers(), st.text(), st.none(), st.booleans()), st.lists))
def test_tidied_values_are_json_and_close(value):
    def check(a, b):
        if isinstance(a, list):
            assert len(a) == len(b)
            for x, y in zip(a, b):
                check(x, y)
        elif isinstance(a, float) and a - a == 0:
            assert b == pytest.approx(a, rel=1e-5, abs=0)
        elif isinstance(a, float):
            assert b == str(a)
        else:
            assert a == b

    tidy = store.tidy(value)
    check(value, json.loads(json.dumps(tidy, allow_nan=False)))


def test_frame_has_one_row_a_record(tmp_path):
    for spec in RUNS:
        save(spec, tmp_path)
    records, problems = store.load_all(tmp_path)
    frame = store.frame(records)
    assert problems == [] and len(frame) == len(RUNS) and set(frame["key"]) == {key(s) for s in RUNS}
    row = frame[frame["weight.strength"] == 1e-3].iloc[0]
    assert row["weight.name"] == "hierarchical_squared_group_l12" and row["test_accuracy"] == 91.25
    assert [r["spec"].scale for r in store.load_all(tmp_path, "laptop")[0]] == ["laptop"]
    with pytest.raises(ValueError, match="did you mean 'quick'"):
        store.load_all(tmp_path, "qick")


def test_numbers_of_the_frame_that_are_not_finite_are_numbers(tmp_path):
    metrics = {"straightness": [1.0, float("nan"), float("inf")]}
    for seed, value in enumerate(metrics["straightness"]):
        save(replace(RUNS[0], seed=seed), tmp_path, METRICS | {"straightness": value})
    frame = store.frame(store.load_all(tmp_path)[0])
    assert frame["straightness"].isna().tolist() == [False, True, False] and frame["straightness"].max() == float("inf")


def test_a_record_that_goes_while_others_are_read_is_not_there(tmp_path, monkeypatch):
    first, second = (save(replace(RUNS[0], seed=seed), tmp_path) for seed in (0, 1))
    read = store.read

    def gone(path):
        second.unlink(missing_ok=True)
        return read(path)

    monkeypatch.setattr(store, "read", gone)
    records, problems = store.load_all(tmp_path)
    assert [r["path"] for r in records] == [str(first)] and problems == []
    assert store.lookup(replace(RUNS[0], seed=1), tmp_path) is None


def test_a_misspelt_stale_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("FFR_STALE", "reran")
    with pytest.raises(ValueError, match="STALE is 'reran'.*did you mean 'rerun'"):
        store.current(RUNS[0], tmp_path)


def test_frame_tells_the_fresh_seeds(tmp_path):
    for seed in (0, 4, 99, 100, 114, 115):
        save(replace(RUNS[0], seed=seed), tmp_path)
    frame = store.frame(store.load_all(tmp_path)[0])
    assert dict(zip(frame["seed"], frame["fresh"])) == {0: False, 4: False, 99: False, 100: True, 114: True, 115: False}


def test_index_names_every_record_once(tmp_path):
    for spec in RUNS:
        save(spec, tmp_path)
    save(replace(RUNS[0], seed=8), tmp_path, {"failure": {"epoch": 1}}, "diverged")
    text = store.write_index(tmp_path).read_text()
    assert text.count("| finished |") == len(RUNS) and text.count("| diverged |") == 1
    for line in text.splitlines():
        if line.startswith("| ["):
            assert (tmp_path / line.split("](")[1].split(")")[0]).exists()
    assert store.write_index(tmp_path).read_text() == text


def test_records_are_small(tmp_path):
    metrics = METRICS | {"threshold_sweep": {"threshold": [1 / 3] * 30, "sparsity": [2 / 3] * 30}}
    assert Path(save(RUNS[2], tmp_path, metrics)).stat().st_size < 6000


def test_a_named_commit_counts_whatever_history_lies_there(monkeypatch):
    """A machine that is lent may hold a copy of the files beside an older history."""
    monkeypatch.setenv("FFR_COMMIT", "f" * 40)
    store._commit.cache_clear()
    try:
        assert store._commit() == ("f" * 40, None)
    finally:
        store._commit.cache_clear()
