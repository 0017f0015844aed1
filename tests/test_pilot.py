"""The search for strengths, on made-up arms whose sparsity and accuracy are known functions of the strength."""

import json
import sys

import pytest

from ffrlib.files import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import pilot  # noqa: E402


def arm(half: float, breaks: float):
    """Runs of an arm: half of the weights are small at strength `half`, six points are lost at `breaks` and beyond."""
    asked = []

    def run(strength: float):
        asked.append(strength)
        lost = 6.0 if strength >= breaks * 0.99 else 1.0
        return strength / (strength + half), 90.0 - lost, "finished"

    return run, asked


def chosen(run, centre, count, by_weights):
    found = pilot.walk(run, centre, 90.0, count, by_weights)
    assert list(found) == sorted(found)
    return pilot.choose_strengths(list(found), list(found.values()), 90.0, count, by_weights)


def test_weights_from_a_third_small_to_the_first_that_costs_five_points():
    run, asked = arm(half=1.0, breaks=9.0)
    assert chosen(run, 1.0, 3, True) == [1.0, 3.0, 9.0]  # 0.33 has 25 % small, 9 is the first that breaks
    assert min(asked) == pytest.approx(0.33) and max(asked) == 9.0


def test_weights_stop_at_ninety_percent():
    run, asked = arm(half=1.0, breaks=1e9)
    assert chosen(run, 1.0, 3, True)[-1] == 9.0 and max(asked) == 9.0  # 9 / 10 are small


def test_a_centre_that_breaks_is_left_downwards():
    run, _ = arm(half=0.1, breaks=1.0)
    assert chosen(run, 9.0, 3, True)[-1] == 1.0


@pytest.mark.parametrize("count, kept", [(1, [3.0]), (2, [1.0, 3.0]), (3, [0.33, 1.0, 3.0])])
def test_features_keep_the_largest_that_cost_less_than_five_points(count, kept):
    run, _ = arm(half=1e9, breaks=9.0)
    assert chosen(run, 1.0, count, False) == kept
    run, _ = arm(half=1e9, breaks=9.0)
    assert chosen(run, 27.0, count, False) == kept


def test_where_one_strength_is_wanted_it_is_a_sound_one():
    run, _ = arm(half=30.0, breaks=9.0)  # none of those that are sound has a third of its weights small
    assert chosen(run, 1.0, 1, True) == [3.0]
    run, _ = arm(half=300.0, breaks=3.0)  # nor is the centre
    assert chosen(run, 9.0, 1, True) == [1.0]


def test_a_case_that_was_left_out_replaces_no_measurement(monkeypatch, tmp_path):
    monkeypatch.setenv("FFR_RESULTS", str(tmp_path))
    import training

    place = tmp_path / "benchmarks"
    for case in ({"new case": {"memory": 100}}, {"new case": {"left out": "no time"}, "other": {"failed": "why"}}):
        training.write("cpu", case)
    cases = json.loads(next(place.glob("*.json")).read_text())["cases"]
    assert cases["new case"]["memory"] == 100 and cases["other"]["failed"] == "why"
    training.write("cpu", {"new case": {"memory": 90}, "other": {"memory": 80}})
    cases = json.loads(next(place.glob("*.json")).read_text())["cases"]
    assert cases["new case"]["memory"] == 90 and cases["other"]["memory"] == 80
