"""The environment's files agree with one another: what the package needs is pinned, and nothing names a host."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def name_of(requirement):
    """The normalised project name at the head of a requirement."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


@pytest.fixture(scope="module")
def pins():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_everything_the_package_needs_is_pinned(pins):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    needed = project["dependencies"] + optional["test"] + optional["cluster"]  # tests/test_cluster.py needs the latter
    assert {name_of(line) for line in needed} <= {name_of(line) for line in pins}
    assert project["requires-python"] == ">=3.11,<3.13"


def test_pins_are_exact_and_fit_any_platform(pins):
    for line in pins:
        assert re.fullmatch(r"[\w.-]+==[\w.+]+( ; python(_full)?_version [<>=]+ \"[\d.]+\")?", line), line
        assert not name_of(line).startswith(("nvidia", "cuda", "triton"))
    assert "torch==2.14.1" in pins and "torchvision==0.29.1" in pins
    unconditional = [name_of(line) for line in pins if ";" not in line]
    assert len(unconditional) == len(set(unconditional))


def test_conda_users_get_the_same_lock_file():
    text = (ROOT / "environment.yml").read_text()
    assert "-r requirements.lock" in text and "Not run under conda" in text


@pytest.mark.parametrize("file", ["Makefile", "requirements.lock", "environment.yml", "pyproject.toml", ".ci/run"])
def test_no_set_up_file_names_a_host(file):
    assert not re.search(r"https?:|index.url|find.links", (ROOT / file).read_text())


def test_pages_link_to_few_hosts_and_to_no_package_registry():
    folders = ("", "docs/", "teaching/", "notebooks/**/")
    pages = [page for folder in folders for kind in ("md", "ipynb") for page in ROOT.glob(f"{folder}*.{kind}")]
    hosts = {host for page in pages for host in re.findall(r"https?:/+([\w.-]+)", page.read_text())}
    assert len(pages) > 20 and hosts <= {"github.com", "distributed.dask.org", "kubernetes.dask.org"}


def test_every_command_in_the_makefile_is_phony_and_explained():
    text = (ROOT / "Makefile").read_text()
    commands = set(re.findall(r"^([a-z]+):.*##", text, re.M))
    phony = set(re.search(r"^\.PHONY: (.*)$", text, re.M)[1].split())
    assert commands == phony
    assert {"reproduce", "replicate", "test", "lab", "tables", "check", "plan", "data", "clean", "help"} <= commands


def test_clean_leaves_folders_with_a_space_in_their_names(tmp_path):
    kept = [tmp_path / name / "kept.txt" for name in ("results", "results copy", "notebooks")]
    for path in kept:
        (path.parent / ".ipynb_checkpoints").mkdir(parents=True)
        path.touch()
    subprocess.run(["make", "-s", "-f", str(ROOT / "Makefile"), "clean"], cwd=tmp_path, check=True)
    assert all(path.exists() for path in kept) and not list(tmp_path.rglob(".ipynb_checkpoints"))
