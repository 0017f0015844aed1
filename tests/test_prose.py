"""The numbers in prose are those of the records, and each has one meaning."""

import json
import re

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_tables import PLAIN, grid, keep, lasso  # noqa: F401

from ffrlib import catalogue, prose, tables
from ffrlib.files import REPOSITORY


def test_cuts_of_other_budgets_and_of_tuned_nets_have_names_of_their_own(tmp_path):
    cut = catalogue.cuts(PLAIN, ["loss_increase"], (0.5,), "loss_tolerance", 3, 0.02)
    again = catalogue.cuts(PLAIN, ["loss_increase"], (0.5,), "macs_share", 3, 0.02)
    records = [keep(tmp_path, s, test_accuracy=a) for s, a in ((*cut, 90.0), (*again, 60.0))]
    cuts = [
        s for _, s in catalogue.published_resnet56("laptop") if (s.pruning.score, s.pruning.amount) == ("l1_norm", 0.5)
    ]
    records += [keep(tmp_path, s, test_accuracy=70.0 + s.recipe.epochs) for s in cuts if tables.arm_of(s) == "plain"]
    found = {name: text for name, text in prose.values(records, []).items() if name.endswith(".test_accuracy")}
    assert sorted(found.values()) == ["60.00", "70.00", "72.00", "90.00"], "two cuts share a name"
    assert found["quick.digits_digits_cnn.plain.cut.loss_increase.macs_share.0.5.test_accuracy"] == "60.00"


def test_one_name_with_two_numbers_is_refused(tmp_path, monkeypatch):
    records = [keep(tmp_path, lasso(0.01)), keep(tmp_path, PLAIN)]
    monkeypatch.setitem(tables.LABELS, "arm", lambda spec: "plain")
    records[0]["metrics"]["test_accuracy"] = 90.0
    with pytest.raises(ValueError, match="the value quick.digits_digits_cnn.plain"):
        prose.values(records, [])


@given(st.dictionaries(st.sampled_from(["a", "b.c", "d_e"]), st.from_regex(r"\A[0-9.]{1,6}\Z"), min_size=1))
def test_prose_is_refreshed_and_then_right(known):
    text = (
        "Before " + " and ".join(f"<!--value:{name}-->7<!--/value--> %" for name in ("a", "b.c", "d_e")) + ", 12 after."
    )
    new = prose.refreshed(text, known)
    assert {name for name, _, _ in prose.numbers(new, known)} == {"a", "b.c", "d_e"} - set(known)
    assert all(right is None for _, _, right in prose.numbers(new, known))
    assert new.startswith("Before ") and new.endswith(" %, 12 after.") and prose.refreshed(new, known) == new
    wrong = [name for name in known if known[name] != "7"]
    assert [name for name, _, right in prose.numbers(text, known) if right] == sorted(wrong)


def test_a_mark_left_open_takes_no_text_with_it():
    text = "a <!--value:x-->1<!--value/--> told <!--value:y-->2<!--/value--> b"
    assert (
        prose.refreshed(text, {"x": "9", "y": "3"})
        == "a <!--value:x-->1<!--value/--> told <!--value:y-->3<!--/value--> b"
    )


def test_prose_of_the_repository_does_not_speak_of_another_store(results):
    assert prose.files() == []


@pytest.fixture
def own_store(monkeypatch):
    """Our prose is of the repository's own store, wherever the tests' results are to go."""
    monkeypatch.delenv("FFR_RESULTS", raising=False)
    assert prose.files()


def test_numbers_in_our_prose_come_from_the_values_file(own_store):
    path = REPOSITORY / "results" / "values.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    wrong = [(f.name, *w) for f in prose.files() for w in prose.numbers(f.read_text(), known)]
    assert not wrong, "run python -m ffrlib.verdicts"


def test_every_mark_in_our_prose_is_closed(own_store):
    """One left open would be skipped: its number neither refreshed nor checked."""
    for path in prose.files():
        text = path.read_text()
        assert text.count("<!--value:") == text.count("<!--/value-->") == len(prose.VALUE.findall(text)), path.name


def test_no_line_of_prose_begins_with_a_mark(own_store):
    """Markdown takes a line that begins with a comment for HTML, and shows its stars and backticks as they are."""
    for path in (p for p in prose.files() if p.suffix == ".md"):
        lines = [line for line in path.read_text().splitlines() if line.lstrip().startswith("<!--value")]
        assert not lines, (path.name, lines)


def test_no_name_in_braces_was_left_where_a_number_belongs(own_store):
    left = {f.name: re.findall(r"\{\{[^{}\n]*\}\}", f.read_text()) for f in prose.files()}
    assert not {name: found for name, found in left.items() if found}


# Numbers of prose that are no results: the recipe, the definition of a measure, what a claim of the papers says.
GIVEN = {
    "README.md": {
        "2.5": "step of the search",
        "0.001": "published threshold",
        "95": "interval",
        "0.03": "strength",
        "64": "batch",
    },
    "docs/findings.md": {
        "2.5": "step of the search",
        "95": "interval",
        "30": "share of the MACs or channels cut",
        "0.0033": "strength",
        "0.0011": "strength",
        "0.5": "loss tolerance",
        "17": "points, of a state before",
        "15": "epochs",
        "20,000": "images",
        "0.001": "threshold",
        "100": "all of them",
        "81": "range of strengths",
        "10": "epochs",
        "20": "epochs",
        "0.0005": "decay",
        "0.005": "decay",
        "45,000": "images",
        "0.01": "strength",
        "0.03": "strength",
        "0.09": "strength",
        "0.02": "loss tolerance",
        "0.05": "loss tolerance",
        "0.1": "loss tolerance",
        "0.2": "loss tolerance",
        "0.3": "claim H3, points",
    },
    "1_hgsr_criteria": {"0.001": "published threshold", "95": "interval", "10": "powers of ten"},
    "2_hgsr_structure": {"95": "interval"},
    "3_hgsr_pruning": {"0.3": "claim H3, points", "512": "images", "95": "interval", "10": "claim H3, CIFAR-10"},
    "4_ffr_flow": {"95": "interval", "30": "share cut", "50": "share cut", "10": "guessing", "2.5": "step"},
    "5_ffr_pruning": {"95": "interval", "64": "batch"},
    "6_ffr_readings": {"95": "interval"},
    "7_both_papers": {"95": "interval"},
    "8_how_firm": {"95": "interval", "15": "fresh seeds", "30": "share cut", "0.5": "tolerance"},
}
NUMBER = re.compile(r"(?<![\w./-])\d+(?:[.,]\d+)*(?![\w/-])")


@pytest.mark.parametrize("name", GIVEN)
def test_numbers_without_a_mark_are_no_results(name):
    if name.endswith(".md"):
        text = (REPOSITORY / name).read_text()
    if name == "README.md":
        text = text[text.index("## What it says so far") : text.index("## Where to read on")]
    elif "." not in name:
        cells = nbformat.read(REPOSITORY / "notebooks" / "experiments" / f"{name}.ipynb", as_version=4).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    found = NUMBER.findall(prose.VALUE.sub("", re.sub(r"\]\([^)]*\)", "]", text)))
    found = {number for number in found if len(number) > 1}  # one digit names a claim, a layer, a 3 x 3 convolution
    assert found <= set(GIVEN[name]), "mark it <!--value:NAME-->, or say here what it is"
