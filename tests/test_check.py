"""What is committed follows from the records, and a replication agrees with it: on fabricated records."""

import functools
import json
import math
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_tables import PLAIN, keep, lasso, seeded

from ffrlib import catalogue, check, prose, rendering, store, tables, verdicts

OTHER = {"cpu": "another CPU"}


@pytest.fixture(autouse=True)
def small_catalogue(monkeypatch):
    """Plain runs and one arm: the check itself does not depend on how many there are."""
    monkeypatch.setattr(catalogue, "strengths", lambda scale, net, arm: [0.01] if arm == "group_lasso" else [])
    cached = functools.cache(tables.unseeded)  # making thousands of settings is most of the time here
    monkeypatch.setattr(tables, "unseeded", lambda name, scale: cached(name, scale))
    monkeypatch.setattr(prose, "files", lambda: [])


@pytest.fixture
def committed(results):
    """Records of two arms, five seeds each."""
    for spec in (*seeded(PLAIN, 5), *seeded(lasso(0.01), 5)):
        keep(results, spec, test_accuracy=97 + 0.1 * spec.seed)
    return results


def make_all(root):
    """Tables, verdicts and values from the records under `root`."""
    records, problems = store.load_all(root)
    assert not problems
    rendering.write_all("quick", records, root)
    verdicts.write(records, root)


# -- make check --------------------------------------------------------------------------------------------------------
def test_what_follows_from_the_records_is_right(committed, capsys):
    make_all(committed)
    assert check.main() == 0
    said = capsys.readouterr().out
    assert "10 records, 0 stale, 0 wrong" in said and said.count("scale paper: not run") == 3


def test_a_readers_own_run_makes_no_table_due(committed, capsys):
    make_all(committed)
    store.write_index(committed)
    own = replace(catalogue.BASES["laptop"]["resnet20"], train_size=300)
    keep(committed, own, test_accuracy=50.0)
    assert check.main() == 0, capsys.readouterr().out
    keep(committed, catalogue.BASES["laptop"]["resnet20"], test_accuracy=50.0)  # one of the catalogue does
    assert check.main() == 1


def test_every_kind_of_fault_is_named(committed, capsys, monkeypatch, tmp_path):
    make_all(committed)
    table = committed / "tables" / "quick" / "1_hgsr_criteria-strengths.csv"
    table.write_text(table.read_text().replace("97.20", "97.21"))
    (committed / "tables" / "quick" / "4_ffr_flow-strengths.md").unlink()
    (committed / "tables" / "quick" / "8_more.csv").write_text("x\n")
    (committed / "values.json").write_text("{}\n")
    index = store.write_index(committed)
    index.write_text(index.read_text().replace("97.20", "97.22", 1))
    page = tmp_path / "page.md"
    page.write_text("<!--value:records-->11<!--/value--> and <!--value:no.such-->1<!--/value-->")
    monkeypatch.setattr(prose, "files", lambda: [page])
    assert check.main() == 1
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WRONG")]
    expected = ["1_hgsr_criteria-strengths.csv: differs", "4_ffr_flow-strengths.md: missing", "8_more.csv: no table",
                "values.json: differs", "page.md: records is written 11, the records give 10",
                "page.md: no.such", "INDEX.md: no record gives the row"]  # fmt: skip
    assert len(said) == len(expected) and all(any(e in line for line in said) for e in expected)


def test_damaged_records_fail_and_stale_ones_are_listed(committed, capsys):
    paths = sorted(committed.glob("runs/*/*/*.json"))
    record = json.loads(paths[0].read_text())
    record["provenance"]["code"] = "old"
    paths[0].write_text(json.dumps(record))
    make_all(committed)
    assert check.main() == 0
    said = capsys.readouterr().out
    assert f"stale (made with other code): {paths[0]}" in said and "10 records, 1 stale, 0 wrong" in said
    paths[1].write_text(paths[1].read_text()[:-20])
    assert check.main() == 1
    assert paths[1].name in capsys.readouterr().out


@pytest.mark.parametrize("accuracy, right", [(91.3, True), (90.3, True), (90.0, False), (93.5, False)])
def test_our_dense_nets_lie_near_the_published_ones(tmp_path, accuracy, right):
    spec = catalogue.BASES["paper"]["resnet20"]  # published: 91.25 and 91.73
    records = [keep(tmp_path, s, test_accuracy=accuracy) for s in seeded(spec, 2)]
    said, wrong = check.against_published(records)
    assert (len(said), len(wrong)) == ((3, 0) if right else (2, 1))
    assert f"ours {accuracy:.2f} (n = 2), published 91.25 to 91.73" in (said + wrong)[0 if right else 2]


# -- replication -------------------------------------------------------------------------------------------------------
def again(root, specs, made=(), shift=0.0, **numbers):
    for spec in specs:
        keep(root, spec, made=made, **({"test_accuracy": 97 + 0.1 * spec.seed + shift} | numbers))
    return root


def test_equal_machines_must_agree_bit_for_bit(committed, tmp_path, capsys):
    specs = seeded(lasso(0.01), 2)
    same = again(tmp_path / "a", specs, made={"seconds": 99.0, "commit": "later"}, latency_ms={"batch_1": 7.0})
    assert check.compare(committed, same) == 0
    said = capsys.readouterr().out
    assert said.startswith("agree   quick/digits-digits_cnn/gl-feature-0.01--")
    assert (
        "test_accuracy" in said
        and "curve" in said
        and "2 records compared with 10 committed ones in" in said
        and "0 differences" in said
    )
    other = again(tmp_path / "b", specs, shift=1e-4)  # far inside any interval
    assert check.compare(committed, other) == 1
    said = capsys.readouterr().out
    assert "test_accuracy: equal provenance, other bits" in said and "zero_channels" in said.split("differs")[0]


@pytest.mark.parametrize("made", [{}, "OTHER"])
def test_what_only_newer_records_have_measured_is_asked_of_those(made, tmp_path):
    """An arm whose later seeds were made by code that measures one thing more."""
    made, specs = OTHER if made else made, seeded(lasso(0.01), 5)
    old = again(tmp_path / "old", specs[:3])
    again(old, specs[3:], novel_accuracy=90.0)
    fresh = again(tmp_path / "new", specs, made=made, novel_accuracy=90.0)
    assert check.compare(old, fresh) == 0
    again(fresh, specs, made=made, novel_accuracy=80.0)
    assert check.compare(old, fresh) == 1


@pytest.mark.parametrize("shift, code", [(0.1, 0), (-0.2, 0), (2.0, 1), (-2.0, 1)])
def test_other_machines_must_agree_within_intervals(committed, tmp_path, shift, code, capsys):
    fresh = again(tmp_path / "a", seeded(lasso(0.01), 3), made=OTHER, shift=shift)
    assert check.compare(committed, fresh) == code
    assert ("test_accuracy: 97.2 against" in capsys.readouterr().out) == bool(code)


def test_other_machines_and_shares(committed, tmp_path):
    specs = seeded(lasso(0.01), 3)
    assert check.compare(committed, again(tmp_path / "a", specs, made=OTHER, zero_channels=0.004)) == 0
    assert check.compare(committed, again(tmp_path / "b", specs, made=OTHER, zero_channels=0.006)) == 1
    assert check.compare(committed, again(tmp_path / "c", specs, made=OTHER, layer_sparsity=[0.1, 0.3])) == 1


def test_chance_explains_few_cells_of_many_and_no_large_deviation(committed, tmp_path, monkeypatch, capsys):
    specs = seeded(lasso(0.01), 3)
    fresh = again(tmp_path / "a", specs, made=OTHER, shift=2.0)
    assert check.compare(committed, fresh) == 1  # one cell of some twenty
    monkeypatch.setattr(check, "CHANCE", 0.1)
    assert check.compare(committed, fresh) == 0
    assert "1 cells outside their interval" in capsys.readouterr().out
    rounding = again(tmp_path / "b", specs, made=OTHER, worst_deviation=3e-7)
    assert check.compare(committed, rounding) == 0
    wrong = again(tmp_path / "c", specs, made=OTHER, worst_deviation=2e-5)
    assert check.compare(committed, wrong) == 1
    assert "worst_deviation: 2e-05, more than 1e-05" in capsys.readouterr().out


def test_a_whole_scale_made_again_says_what_becomes_of_the_verdicts(committed, tmp_path, monkeypatch, capsys):
    def judged(records):  # F1 by how accurate the runs are; H1 and another scale's F1 as they are
        best = max(r["metrics"]["test_accuracy"] for r in records)
        words = {("F1", "quick"): "supported" if best > 99 else "undecided", ("H1", "quick"): "undecided"}
        words |= {("F1", "paper"): "undecided"}
        return [{"claim": c, "scale": s, "net": "a net", "set": "digits", "verdict": w} for (c, s), w in words.items()]

    monkeypatch.setattr(verdicts, "verdicts", judged)
    old = store.load_all(committed)[0]
    new = [keep(tmp_path, r["spec"], test_accuracy=99.5) for r in old]
    more = [*old, keep(tmp_path, seeded(lasso(0.01), 6)[5], test_accuracy=99.5)]
    assert check.verdicts_again(old, new) == [
        "verdict F1 a net digits: undecided, of the fresh runs supported",
        "1 of 2 verdicts at quick are the same from the fresh runs",
    ]
    assert check.verdicts_again(new, old[1:]) == [], "a part of a scale says nothing"
    assert check.verdicts_again(old, more) == check.verdicts_again(old, old), (
        "seeds without a committed one are left out"
    )
    assert check.compare(committed, committed) == 0
    assert "2 of 2 verdicts at quick are the same from the fresh runs" in capsys.readouterr().out


def test_missing_damaged_diverged_and_empty_replications_fail(committed, tmp_path, capsys):
    assert check.compare(committed, tmp_path / "none") == 1
    assert check.compare(committed, again(tmp_path / "a", seeded(lasso(0.05), 1))) == 1
    assert "no committed record of seed 0" in capsys.readouterr().out
    keep(tmp_path / "b", lasso(0.01), "diverged", made=OTHER)
    assert check.compare(committed, tmp_path / "b") == 1
    assert "status: finished or diverged" in capsys.readouterr().out
    path = keep(tmp_path / "c", lasso(0.01), test_accuracy=97.0)["path"]
    with open(path, "a") as file:
        file.write("}")
    assert check.compare(committed, tmp_path / "c") == 1


@given(st.lists(st.floats(90, 99), min_size=2, max_size=6), st.integers(1, 6), st.floats(-5, 5))
def test_agreement_is_the_stated_rule(committed, count, shift):
    committed = pd.Series(committed)
    fresh = (committed + shift).head(count)
    mean, _, high = tables.interval(committed)
    own = (high - mean) * math.sqrt(len(committed)) if len(fresh) == 1 else tables.interval(fresh)[2] - fresh.mean()
    reach = 0.3 + high - mean + own
    distance = abs(fresh.mean() - mean)
    if abs(distance - reach) > 1e-9:
        assert check.agree("test_accuracy", committed, fresh)[0] == (distance < reach)


def test_a_single_committed_run_has_an_allowance_of_its_own():
    one = pd.Series([97.0])
    assert (
        check.agree("test_accuracy", one, pd.Series([97.9]))[0]
        and not check.agree("test_accuracy", one, pd.Series([98.1]))[0]
    )
    assert not check.agree("zero_channels", pd.Series([0.1]), pd.Series([0.13]))[0]
    assert check.agree("flow_length", pd.Series([1.0]), pd.Series([1.04]))[0]
    assert check.agree("flow_curvature", pd.Series([math.nan]), pd.Series([math.nan]))[0]
    assert not check.agree("flow_curvature", pd.Series([1.0]), pd.Series([math.nan]))[0]
