"""The lessons: their form, that their checks fail without an answer and pass with it, and the student versions; and the
stills of the notebook that explores runs."""

import ast
import json
import re
import symtable
import sys
from pathlib import Path

import matplotlib
import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "teaching"))
import make_students  # noqa: E402
import refresh  # noqa: E402

matplotlib.use("Agg")
LESSONS = sorted((ROOT / "notebooks" / "lessons").glob("[0-9]*.ipynb"))
NAMES = ["1_why_sparse", "2_penalties_as_geometry", "3_hierarchical_groups", "4_feature_flow", "5_cutting_for_real",
         "6_macs_are_not_milliseconds", "7_reading_the_evidence"]  # fmt: skip
EXPLORE = ROOT / "notebooks" / "explore.ipynb"
TOLD = [ROOT / "notebooks" / "00_start_here.ipynb", *LESSONS]  # what trains a net before the reader's eyes
each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


def tagged(notebook, tag: str) -> list:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def test_all_seven_are_there():
    assert [path.stem for path in LESSONS] == NAMES


@each_lesson
def test_form(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 500_000
    assert len(notebook.cells) <= 40
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert notebook.metadata.kernelspec.name == "python3"
    first, last = notebook.cells[0].source, notebook.cells[-1].source
    assert first.startswith("# Lesson") and "**Goal.**" in first and "**Expected result.**" in first
    assert last.startswith("## What to run next")
    assert not tagged(notebook, "parameters")
    solutions, checks = tagged(notebook, "solution"), tagged(notebook, "check")
    assert 2 <= len(solutions) == len(checks) <= 3
    for solution, check in zip(solutions, checks):
        assert solution.metadata.jupyter.source_hidden is True
        assert notebook.cells.index(check) == notebook.cells.index(solution) + 1
        assert "assert " in check.source
    assert len(tagged(notebook, "exercises")) == 1


@each_lesson
def test_functions_are_short(path):
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code":
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.FunctionDef):
                    assert node.end_lineno - node.lineno < 20, node.name
            assert max(map(len, cell.source.split("\n"))) <= 160, cell.id


@each_lesson
def test_outputs_are_stored(path):
    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        kinds = [output.output_type for output in cell.outputs]
        assert "error" not in kinds and "stderr" not in [o.get("name") for o in cell.outputs], cell.id
        draws, widget = "plt.show()" in cell.source, "widget" in cell.metadata.get("tags", [])
        pictures = [o for o in cell.outputs if "image/png" in o.get("data", {})]
        assert bool(pictures) == (draws and not widget), cell.id
        if pictures:
            assert cell.metadata.mystnb.image.alt, f"{cell.id}: a picture needs words for those who do not see it"
        assert not (widget and cell.outputs), "a widget is nothing without its kernel"
    text = path.read_text()
    assert not re.search(r"/(home|root|work|Users)/", text), "a path of the machine that ran it"
    assert "application/vnd.jupyter.widget-view" not in text and "<script" not in text


@pytest.mark.parametrize("path", TOLD, ids=lambda path: path.stem)
def test_training_shows_the_time_left(path):
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code" and "train_together(" in cell.source:
            assert "tqdm(" in cell.source, cell.id


def test_explore_has_a_still_behind_each_widget():
    notebook = nbformat.read(EXPLORE, 4)
    nbformat.validate(notebook)
    assert EXPLORE.stat().st_size < 400_000 and len(notebook.cells) <= 40
    widgets = tagged(notebook, "widget")
    assert len(widgets) == 3
    for cell in widgets:
        still = notebook.cells[notebook.cells.index(cell) + 1]
        (picture,) = [output for output in still.outputs if "image/png" in output.get("data", {})]
        assert cell.outputs == [] and picture.metadata["image/png"]["alt"].startswith("quick: ")
    text = EXPLORE.read_text()
    assert not re.search(r"/(home|root|work|Users)/", text), "a path of the machine that ran it"
    assert "application/vnd.jupyter.widget-view" not in text and "stderr" not in text


# -- exercises ---------------------------------------------------------------------------------------------------------
def bound_and_used(source: str) -> tuple[set[str], set[str]]:
    """Names that a cell defines, and names that it takes from cells before."""
    top = symtable.symtable(source, "cell", "exec")
    bound = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    used, scopes = {s.get_name() for s in top.get_symbols() if s.is_referenced()}, top.get_children()
    while scopes:
        scope = scopes.pop()
        used |= {s.get_name() for s in scope.get_symbols() if s.is_global()}
        scopes += scope.get_children()
    return bound, used - bound


def context_of(cells: list) -> list:
    """The code cells that a lesson's exercises need, directly or through others; no training that none asks for."""
    end = [c for c in cells if {"solution", "check"} & set(c.metadata.get("tags", []))]
    before = [c for c in cells if c not in end and "widget" not in c.metadata.get("tags", [])]
    own, asked = (set().union(*names) for names in zip(*(bound_and_used(c.source) for c in end)))
    needed, wanted = [], asked - own
    for cell in reversed(before):
        bound, used = bound_and_used(cell.source)
        if bound & wanted:
            needed.insert(0, cell)
            wanted = (wanted - bound) | used
    return needed


def run(cell, space: dict) -> None:
    exec(compile(cell.source, cell.id, "exec"), space)


@each_lesson
def test_checks_fail_before_and_pass_after(path, capsys):
    lesson = nbformat.read(path, 4)
    student = nbformat.reads(make_students.text(path), 4)
    space = {"__name__": "__main__"}
    for cell in context_of([c for c in lesson.cells if c.cell_type == "code"]):
        run(cell, space)
    blanks = tagged(student, "blank")
    for solution, empty, check in zip(tagged(lesson, "solution"), blanks, tagged(lesson, "check"), strict=True):
        assert empty.id == solution.id
        name = next(n.name for n in ast.walk(ast.parse(empty.source)) if isinstance(n, ast.FunctionDef))
        run(empty, space)
        with pytest.raises(NotImplementedError):
            run(check, space)
        space[name] = lambda *arguments, **more: None  # an answer, but not the right one
        with pytest.raises((AssertionError, TypeError, AttributeError)):
            run(check, space)
        run(solution, space)
        run(check, space)
    assert len(blanks) >= 2 and capsys.readouterr().out  # each check says something when it passes


# -- student versions --------------------------------------------------------------------------------------------------
@each_lesson
def test_student_versions_are_up_to_date(path):
    assert (make_students.STUDENT / path.name).read_text() == make_students.text(path), "run teaching/make_students.py"


@each_lesson
def test_a_student_version_gives_nothing_away(path):
    lesson, student = nbformat.read(path, 4), nbformat.read(make_students.STUDENT / path.name, 4)
    assert len(student.cells) == len(lesson.cells)
    for before, after in zip(lesson.cells, student.cells):
        if after.cell_type == "code":
            assert after.outputs == [] and after.execution_count is None
        if "solution" in before.metadata.get("tags", []):
            answer = before.source.split(make_students.MARK)[1].strip()
            assert answer not in after.source and "NotImplementedError" in after.source
            assert "jupyter" not in after.metadata
        elif "exercises" not in before.metadata.get("tags", []):
            assert after.source == before.source


@given(st.lists(st.sampled_from(["x = 1", "y = [2, 3]", "", "# words"])), st.lists(st.sampled_from(["z = 1", "", "w"])))
def test_blank_keeps_what_is_above_and_nothing_below(above, below):
    source = "\n".join([*above, make_students.MARK, *below])
    assert make_students.blank(source) == "\n".join([*above, 'raise NotImplementedError("your answer")'])


TWO_BLOCKS = "def f():\n    # solution\n    return 1\n\nx = f()"


@pytest.mark.parametrize("source", ["x = 1", "# solution\n# solution\n", TWO_BLOCKS])
def test_blank_refuses_a_cell_that_it_cannot_split(source):
    with pytest.raises(ValueError, match="solution"):
        make_students.blank(source)


def test_main_writes_only_what_changed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_students, "STUDENT", tmp_path / "student")
    assert make_students.main(["--check"]) == 1 and not (tmp_path / "student").exists()
    assert make_students.main([]) == 0 and len(list((tmp_path / "student").iterdir())) == 7
    assert make_students.main(["--check"]) == 0
    (tmp_path / "student" / LESSONS[0].name).write_text("{}")
    capsys.readouterr()
    assert make_students.main([]) == 0
    assert capsys.readouterr().out == f"written: {LESSONS[0].name}\n"


def test_every_lesson_has_a_page_of_notes():
    for path in LESSONS:
        text = (ROOT / "teaching" / "notes" / f"{path.stem}.md").read_text()
        for heading in ("## Minutes", "## What to ask", "## Common wrong answers", "## The exercises"):
            assert heading in text, (path.stem, heading)
        assert 150 < len(text.split()) < 700


# -- refresh -----------------------------------------------------------------------------------------------------------
def test_refresh_runs_and_tidies(tmp_path):
    sources = [
        "print('a')\nimport sys\nprint('no', file=sys.stderr)\nprint('b')",
        "1 + 1",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()",
    ]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[1].metadata["tags"] = ["widget"]
    path = tmp_path / "small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    refresh.refresh(path)
    one, two, three = nbformat.read(path, 4).cells
    assert [output.text for output in one.outputs] == ["a\nb\n"]
    assert two.outputs == []
    assert three.outputs[0].data["image/png"]
    assert "execution" not in json.loads(path.read_text())["cells"][0]["metadata"]


def test_tidy_keeps_no_output_of_widgets_and_of_what_changes_without_the_lesson():
    cells = [nbformat.v4.new_code_cell("", outputs=[nbformat.v4.new_output("stream", text="a")]) for _ in range(3)]
    cells[0].metadata["tags"], cells[1].metadata["tags"] = ["widget"], ["live"]
    assert [len(c.outputs) for c in refresh.tidy(nbformat.v4.new_notebook(cells=cells)).cells] == [0, 0, 1]


def test_smaller_keeps_the_picture():
    import base64
    import io

    import numpy as np
    from PIL import Image

    pixels = np.repeat(np.arange(256, dtype=np.uint8), 40).reshape(64, 160)
    png = io.BytesIO()
    Image.fromarray(np.stack([pixels, pixels[::-1], pixels * 0 + 7], 2)).save(png, "PNG")
    before = base64.b64encode(png.getvalue()).decode()
    after = refresh.smaller(before)
    files = [io.BytesIO(base64.b64decode(picture)) for picture in (before, after)]
    opened = [np.asarray(Image.open(file).convert("RGB")).astype(int) for file in files]
    assert len(after) <= len(before) and opened[0].shape == opened[1].shape
    assert np.abs(opened[0] - opened[1]).mean() < 16
