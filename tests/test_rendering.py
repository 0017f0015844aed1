"""Cells as text and in colour; that equal records give equal files is in test_tables.py."""

import math

import pandas as pd

from ffrlib import rendering, tables


def test_text_has_no_negative_zero_and_no_noise():
    assert rendering.text("accuracy_change", -0.0004) == "0.00" and rendering.text("zero_channels", -0.0) == "0"
    assert rendering.text("zero_channels", 1.7e-17) == "0" and rendering.text("worst_deviation", 1.2e-7) == "1.2e-07"
    assert rendering.text("macs_left", 1234567.0) == "1234567" and rendering.text("n", 5) == "5"
    assert rendering.text("lead low", 12.345678) == "12.35" and rendering.text("sparsity", 12.345678) == "12.35"
    assert rendering.text("straightness", math.nan) == "" and rendering.text("test_accuracy", 91.256) == "91.26"


def test_an_interval_of_width_zero_is_shown_of_a_lead_and_one_run_has_none():
    row = {"lead": -1.67, "lead low": -1.67, "lead high": -1.67}
    alone = {"lead": 2.0, "lead low": math.nan, "lead high": math.nan}
    absent = dict.fromkeys(row, tables.NOT_REACHED)
    shown = rendering.readable(pd.DataFrame([row, alone, absent]))["lead"].tolist()
    assert shown == ["-1.67 [-1.67, -1.67]", "2.00", tables.NOT_REACHED]
    row = {"macs": 5.0, "macs low": 5.0, "macs high": 5.0}
    assert rendering.readable(pd.DataFrame([row]))["macs"].tolist() == ["5"]


def test_a_cell_that_was_not_run_is_grey_and_another_is_not():
    table = tables.experiment_tables("5_ffr_pruning", "quick", [])
    assert "color: #888" in rendering.styled(table["before_cut"]).to_html()
    assert "color: #888" not in rendering.styled(table["published"]).to_html()
