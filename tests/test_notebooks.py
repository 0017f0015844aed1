"""Parameters are checked before a kernel starts, reports are summed, and each task sets what it promises."""

import json
import os
import sys
import types

import nbformat
import papermill
import pytest

import ffrlib
from ffrlib import catalogue, notebooks
from ffrlib.files import REPOSITORY
from ffrlib.run import Summary

REGENERATED = []
PARAMETERS = (
    '# what a reader may change\nscale: str = "quick"\nseeds: int = 5\nstrength: float = 0.5\nwide: bool = False'
)
# Reports what it was given and where it ran, as the experiment notebooks do through ffrlib.run.run_specs.
BODY = """
import json, os, sys, pathlib
import ffrlib
print(json.dumps({"scale": scale, "seeds": seeds, "strength": strength, "wide": wide, "python": sys.executable,
                  "folder": os.getcwd(), "runner": os.environ.get("FFR_RUNNER"),
                  "results": os.environ.get("FFR_RESULTS"), "train": os.environ.get("FFR_TRAIN"),
                  "sample": os.environ.get("FFR_SAMPLE")}))
if os.environ.get("FFR_SUMMARY"):
    with open(os.environ["FFR_SUMMARY"], "a") as file:
        file.write(json.dumps({"reused": 2, "trained": seeds, "diverged": 1, "missing": 0}) + "\\n")
"""


def write(path, parameters=PARAMETERS, body=BODY, tags=("parameters",)):
    """A notebook with a parameters cell and one more."""
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": list(tags)}), nbformat.v4.new_code_cell(body)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def printed(path):
    """What the notebook's last cell printed."""
    return json.loads(nbformat.read(path, as_version=4).cells[-1].outputs[0].text)


def test_declared_reads_names_and_types(tmp_path):
    assert notebooks.declared(write(tmp_path / "a.ipynb")) == {
        "scale": str, "seeds": int, "strength": float, "wide": bool,
    }  # fmt: skip


@pytest.mark.parametrize("line", ["seeds = 5", "seeds: int", "seeds: int | None = None", "import os", "a.b: int = 3"])
def test_declared_refuses_what_papermill_would_miss(tmp_path, line):
    with pytest.raises(ValueError, match="name: type = value"):
        notebooks.declared(write(tmp_path / "a.ipynb", PARAMETERS + "\n" + line))


def test_declared_wants_one_parameters_cell(tmp_path):
    with pytest.raises(ValueError, match=r"is 0; allowed: 1\."):
        notebooks.declared(write(tmp_path / "a.ipynb", tags=()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sedes": 3}, "did you mean 'seeds'"),
        ({"seeds": "3"}, "seeds of a.ipynb is '3'; allowed: a value of type int"),
        ({"seeds": True}, "type int"),
        ({"seeds": 3.0}, "type int"),
        ({"wide": 1}, "type bool"),
        ({"scale": None}, "type str"),
        ({"strength": "0.1"}, "type float"),
    ],
)
def test_wrong_parameters_stop_before_anything_runs(tmp_path, given, message):
    path = write(tmp_path / "a.ipynb")
    with pytest.raises(ValueError, match=message):
        notebooks.execute(path, given, tmp_path / "out" / "a.ipynb")
    assert not (tmp_path / "out").exists()


def test_execute_passes_parameters_to_this_python_in_the_notebooks_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("FFR_SUMMARY", raising=False)
    monkeypatch.chdir(tmp_path)  # `import ffrlib` must not hang on the working directory
    path = write(tmp_path / "book" / "a.ipynb")
    before = path.read_bytes()
    out = notebooks.execute(path, {"seeds": 3, "strength": 1}, tmp_path / "out" / "a.ipynb", progress=False)
    seen = printed(out)
    assert (seen["seeds"], seen["strength"], seen["scale"], seen["wide"]) == (3, 1, "quick", False)
    assert os.path.realpath(seen["folder"]) == os.path.realpath(path.parent)
    assert seen["python"] == sys.executable
    assert seen["runner"] == "papermill" and os.environ.get("FFR_RUNNER") != "papermill"
    assert path.read_bytes() == before


def test_a_relative_folder_means_the_same_in_a_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FFR_RESULTS", "mine")
    path = write(tmp_path / "book" / "a.ipynb")
    seen = printed(notebooks.execute(path, out=tmp_path / "out.ipynb", progress=False))
    assert os.path.realpath(seen["results"]) == os.path.realpath(tmp_path / "mine")


def test_a_run_of_ones_own_that_diverges_is_one_sentence(results, tmp_path):
    wild = {"criterion": "none", "lr": 1e4, "epochs": 2}
    with pytest.raises(ValueError, match=r"^one_run.ipynb: training diverged, try a smaller strength or learning rate"):
        notebooks.execute(REPOSITORY / "notebooks" / "one_run.ipynb", wild, tmp_path / "out.ipynb", progress=False)


def test_a_failing_cell_is_an_error_and_the_copy_shows_it(tmp_path):
    path = write(tmp_path / "a.ipynb", body="assert seeds == 4, 'the claim does not hold'")
    with pytest.raises(papermill.PapermillExecutionError, match="the claim does not hold"):
        notebooks.execute(path, out=tmp_path / "out.ipynb", progress=False)
    assert "the claim does not hold" in (tmp_path / "out.ipynb").read_text()


def test_a_value_that_a_cell_refuses_is_one_sentence(tmp_path):
    path = write(tmp_path / "picky.ipynb", body='raise ValueError("scale is 7; allowed: quick.")')
    with pytest.raises(ValueError, match=r"^picky.ipynb: scale is 7; allowed: quick\.$"):
        notebooks.execute(path, out=tmp_path / "out.ipynb", progress=False)
    assert "scale is 7" in (tmp_path / "out.ipynb").read_text()


def test_what_the_disk_or_memory_refuses_is_one_sentence_and_says_where_the_rest_is(tmp_path):
    path = write(tmp_path / "full.ipynb", body='raise OSError(28, "No space left on device", "results/x.json")')
    with pytest.raises(ValueError, match=r"^full.ipynb: .*No space left on device.*x.json.* \(more in .*out.ipynb\)$"):
        notebooks.execute(path, out=tmp_path / "out.ipynb", progress=False)


def test_no_kernel_outlives_its_notebook(tmp_path):
    def children() -> set[str]:
        return {p.name for p in psutil.Process().children() if "ipykernel_launcher" in " ".join(p.cmdline())}

    psutil = pytest.importorskip("psutil", reason="psutil comes with ipykernel")
    path = write(tmp_path / "short.ipynb")
    before = len(children())
    notebooks.execute(path, out=tmp_path / "out.ipynb", progress=False)
    assert len(children()) == before


@pytest.fixture
def two_experiments(tmp_path, monkeypatch):
    """Two experiment notebooks, of which the second takes no `seeds`, in a scratch repository."""
    monkeypatch.setattr(notebooks, "EXPERIMENTS", tmp_path / "experiments")
    monkeypatch.setattr(notebooks, "BUILD", tmp_path / "build")
    write(tmp_path / "experiments" / "02_b.ipynb", 'scale: str = "quick"', "seeds, strength, wide = 7, 0, 0\n" + BODY)
    write(tmp_path / "experiments" / "01_a.ipynb")
    monkeypatch.delenv("FFR_TRAIN", raising=False)
    for place in ("store.write_index", "verdicts.main", "pictures.main"):  # they would write into the real results
        monkeypatch.setattr(f"ffrlib.{place}", lambda place=place: REGENERATED.append(place))
    REGENERATED.clear()
    return tmp_path / "build"


def test_reproduce_sums_what_the_notebooks_report(two_experiments, monkeypatch, capsys):
    monkeypatch.setattr(notebooks, "run_specs", None)  # the first notebook makes the runs
    assert notebooks.main(["reproduce", "--seeds", "3", "--workers", "2"]) == 0
    said = capsys.readouterr().out
    assert REGENERATED == ["store.write_index", "verdicts.main", "pictures.main"]
    assert said.index("[1/2] 01_a.ipynb") < said.index("[2/2] 02_b.ipynb")
    assert said.endswith("2 records reused, 10 trained, 2 diverged\n")  # 3 + 7; the second declares no `seeds`
    assert not list(two_experiments.parent.rglob("kernel*")), "sockets are left behind"
    first = printed(two_experiments / "notebooks" / "01_a.ipynb")
    assert (first["scale"], first["seeds"], first["train"]) == ("quick", 3, None)


def test_hours_of_runs_are_made_by_priority_before_the_notebooks(two_experiments, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        notebooks, "run_specs", lambda specs, **more: asked.append((specs, more)) or Summary(4, 9, 0, 1)
    )
    assert notebooks.main("reproduce --scale laptop --seeds 2 --workers 2 --device cpu".split()) == 0
    assert asked == [(catalogue.specs("laptop", seeds=2), {"workers": 2, "device": "cpu"})]
    assert capsys.readouterr().out.endswith("4 records reused, 9 trained, 1 missing\n")
    assert printed(two_experiments / "notebooks" / "01_a.ipynb")["scale"] == "laptop"
    monkeypatch.setattr(notebooks, "run_specs", lambda *a, **more: asked.append(os.environ["FFR_TRAIN"]) or Summary(5))
    assert notebooks.main(["tables", "--scale", "laptop"]) == 0 and asked[1:] == ["never"], "counted once, not trained"
    assert capsys.readouterr().out.endswith("5 records reused, 0 trained\n")


def test_tables_trains_nothing_and_replicate_starts_from_an_empty_store(two_experiments, monkeypatch):
    for name in ("FFR_RESULTS", "FFR_SAMPLE"):
        monkeypatch.delenv(name, raising=False)
    assert notebooks.main(["tables"]) == 0
    assert printed(two_experiments / "notebooks" / "01_a.ipynb")["train"] == "never"

    compared = []
    check = types.SimpleNamespace(compare=lambda committed, fresh: compared.append((committed, fresh)) or 1)
    monkeypatch.setitem(sys.modules, "ffrlib.check", check)
    monkeypatch.setattr(ffrlib, "check", check, raising=False)
    old = two_experiments / "sample" / "results" / "old.json"
    old.parent.mkdir(parents=True)
    old.write_text("{}")
    REGENERATED.clear()
    assert notebooks.main(["sample", "--scale", "laptop"]) == 1  # what compare returns
    assert not REGENERATED
    assert not old.exists()
    seen = printed(two_experiments / "sample" / "notebooks" / "02_b.ipynb")
    assert (seen["scale"], seen["sample"], seen["train"]) == ("quick", "1", None)
    assert seen["results"] == str(two_experiments / "sample" / "results") == str(compared[0][1])
    assert compared[0][0] == notebooks.REPOSITORY / "results"
    assert "FFR_RESULTS" not in os.environ and "FFR_SAMPLE" not in os.environ


def test_no_notebook_and_a_misspelt_scale_are_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "EXPERIMENTS", tmp_path)
    with pytest.raises(FileNotFoundError, match="no notebook"):
        notebooks.main(["reproduce"])
    with pytest.raises(ValueError, match="did you mean 'laptop'"):
        notebooks.main(["reproduce", "--scale", "labtop"])


@pytest.mark.parametrize("name", catalogue.RUNS)
def test_an_experiment_links_every_table_of_its_stored_runs(name):
    """Experiments are stored without outputs: a reader who runs nothing finds what they gave."""
    cells = nbformat.read(REPOSITORY / "notebooks" / "experiments" / f"{name}.ipynb", as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    tables = [path.relative_to(REPOSITORY) for path in (REPOSITORY / "results" / "tables").glob(f"*/{name}-*.md")]
    assert tables and not [path for path in tables if f"](../../{path.as_posix()})" not in text]
