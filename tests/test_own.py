"""The page for readers with a net, penalty or images of their own: its code runs, its numbers are the tables'."""

import re

import pandas as pd
import pytest

from ffrlib.files import REPOSITORY


def test_the_code_of_the_page_runs_and_agrees_with_the_table():
    pytest.importorskip("torch_pruning")
    blocks = re.findall(r"^```python\n(.*?)^```", (REPOSITORY / "docs" / "own.md").read_text(), re.S | re.M)
    names = {"__name__": "own"}
    for block in blocks:
        exec(compile(block, "docs/own.md", "exec"), names)
    table = pd.read_csv(REPOSITORY / "results" / "tables" / "quick" / "1_hgsr_criteria-strengths.csv")
    table = table[table["arm"] == names["name"]].set_index("strength")
    own = names["shares"]
    assert len(own) == len(table) == 5
    share = "removable_weight_share"
    for strength, row in own.iterrows():
        published = table.loc[strength, ["n", share, f"{share} low", f"{share} high"]].astype(float)
        assert row[["size", "mean", "low", "high"]].tolist() == pytest.approx(published.tolist(), abs=2e-3)
    accuracy = names["numbers"]["test_accuracy"]
    assert 60 < accuracy < 100, "the penalty of one's own no longer trains"
    assert len(names["trained"].curve["loss"]) == 5
