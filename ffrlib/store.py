"""The results store: one JSON file a run, readable by a person, verified when it is read."""

from __future__ import annotations

import ast
import functools
import hashlib
import itertools
import json
import os
import platform
import subprocess
from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ffrlib.files import REPOSITORY, results_folder, write_atomically
from ffrlib.scales import FRESH
from ffrlib.spec import CIFAR_RESNETS, SCALES, RunSpec, choose, from_dict, key, to_dict

FORMAT = 1
Problem = namedtuple("Problem", "path why")  # a record that cannot be used, and why
SHORT = {"group_lasso": "gl", "exclusive_sparsity": "es", "group_l12": "gl12", "network_slimming": "slimming",
         "hierarchical_squared_": "hsq-", "hierarchical_square_rooted_": "hsr-"}  # fmt: skip


def penalties_label(spec: RunSpec) -> str:
    """The penalties and strengths of a run as a short file name part, e.g. `hsq-gl12-feature-0.001`."""
    w, f, a, p, parts = spec.weight, spec.flow, spec.activation, spec.pruning, []
    if w.name != "none":
        name = w.name + f"-{w.mix:.3g}-with-{w.second}" * (w.mix < 1)
        for long, short in SHORT.items():
            name = name.replace(long, short)
        parts.append(f"{name}-{w.grouping}-{w.strength:.3g}" + ("-prox" if w.update == "proximal" else ""))
    if f.length or f.curvature:
        parts.append(f"flow-{f.length:.3g}-{f.curvature:.3g}")
    if a.strength:
        parts.append(f"activation-{a.strength:.3g}")
    if p.score != "none":
        parts.append(f"cut-{p.score}-{p.budget}-{p.amount:.3g}".replace("_", "-"))
    return "+".join(parts) or "plain"


def record_path(spec: RunSpec, root: Path | None = None) -> Path:
    """Where a record lies: `runs/<scale>/<data>-<model>/<penalties>--<key>-s<seed>.json` under the store."""
    folder = Path(root or results_folder()) / "runs" / spec.scale / f"{spec.data}-{spec.model}{spec.shortcut.lower()}"
    return folder / f"{penalties_label(spec)}--{key(spec)}-s{spec.seed}.json"


# -- what made a record ------------------------------------------------------------------------------------------------
# Until 2026-11-27 the hash left these out for nets that are not cut, though measuring passes through them. Records of
# that time were made with these versions (the start of their digests), or with ones that compute the same numbers.
COUNTED_LATER = {"pruning/criteria": "14ca5ce8", "pruning/budgets": "4c3d8f3f"}


def modules_of(spec: RunSpec, gpu: bool = False) -> list[str]:
    """The library files that can change a number of a run of `spec`: not `checkpoint` or `run`, and `together`, which
    captures the step, on a GPU alone."""
    family = "resnet" if spec.model in CIFAR_RESNETS or spec.model.startswith("resnet") else "plain"
    names = ["data", "training", "measure", "pruning/removal", "regularizers/flow"]
    names += ["models/__init__", "models/layers", f"models/{family}"] + ["together"] * gpu
    if spec.weight.name != "none" or spec.pruning.score != "none":  # scores are made of the criteria's parts
        names.append("regularizers/weight")
    if spec.weight.update == "proximal":
        names.append("regularizers/proximal")
    names += COUNTED_LATER
    return names + ["jobs"] * (spec.pruning.score != "none")


@functools.cache
def _syntax_digest(name: str) -> str:
    tree = ast.parse((REPOSITORY / "ffrlib" / f"{name}.py").read_text())
    for node in ast.walk(tree):
        documented = isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef))
        if documented and ast.get_docstring(node, clean=False) is not None:
            node.body[0] = ast.Pass()
    text = ast.dump(tree).replace(", type_params=[]", "")  # which Python 3.12 adds: the hash is that of 3.11
    return hashlib.sha256(text.encode()).hexdigest()


def _combined(digests) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:12]


def code_hash(spec: RunSpec, gpu: bool = False) -> str:
    """Hash of the syntax trees, without docstrings, of the modules that a run of `spec` passes through."""
    return _combined(_syntax_digest(name) for name in modules_of(spec, gpu))


@functools.cache
def same_numbers() -> list[dict]:
    """Changes of a module (digests "before" and "after") of which somebody has shown that they change no number that a
    record holds: data/same_numbers.json says what changed and how that was shown. Replications hold them to it."""
    return json.loads((REPOSITORY / "data" / "same_numbers.json").read_text())


@functools.cache
def _equal_digests(name: str) -> tuple[str, ...]:
    """The digest of a module, and those of its older versions that compute the same numbers."""
    found = [_syntax_digest(name)]
    for change in reversed(same_numbers()):
        if change["module"] == name and change["after"] in found:
            found.append(change["before"])
    return tuple(found)


@functools.cache
def _equal_codes(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(_combined, itertools.product(*map(_equal_digests, names))))


def same_code(spec: RunSpec, gpu: bool, code: str) -> bool:
    """Whether a record's code hash is that of the present code, or of an older one that computes the same numbers."""
    if code == code_hash(spec, gpu) or code in _equal_codes(names := tuple(modules_of(spec, gpu))):
        return True
    kept = all(any(d.startswith(start) for d in _equal_digests(n)) for n, start in COUNTED_LATER.items())
    short = tuple(n for n in names if n not in COUNTED_LATER)
    return spec.pruning.score == "none" and kept and code in _equal_codes(short)


@functools.cache
def _commit() -> tuple[str, bool | None]:
    def git(*words):
        command = ["git", "--no-optional-locks", *words]  # killed, it leaves no lock behind
        return subprocess.check_output(command, cwd=REPOSITORY, text=True, stderr=subprocess.DEVNULL).strip()

    if named := os.environ.get("FFR_COMMIT"):  # of a copy of the files, whatever history lies beside it
        return named, None
    try:  # results themselves do not make the code dirty
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", "ffrlib", "notebooks/experiments"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", None


def note_code() -> None:
    """Reads commit and code now: a process whose files are edited while it runs must not name the new ones."""
    _commit()
    for path in (REPOSITORY / "ffrlib").rglob("*.py"):
        _syntax_digest(path.relative_to(REPOSITORY / "ffrlib").with_suffix("").as_posix())


@functools.cache
def cpu_type() -> str:
    """Name and family numbers of this CPU: what floating-point results may depend on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in info.split("\n\n")[0].splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    name = fields.get("model name", platform.processor() or platform.machine())
    numbers = f"family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"
    return f"{name}, {numbers}, {torch.backends.cpu.get_cpu_capability()}"


def provenance(spec: RunSpec, device, dtype: torch.dtype, stacking: str, digest: str, seconds: float, **more) -> dict:
    """Everything about how and where a run was made, besides its settings."""
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    commit, dirty = _commit()
    if torch.are_deterministic_algorithms_enabled():
        more["deterministic"] = True
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return {
        "device": name, "cpu": cpu_type(), "threads": torch.get_num_threads(),
        "precision": str(dtype).removeprefix("torch."), "stacking": stacking, "versions": versions,
        "commit": commit, "dirty": dirty, "code": code_hash(spec, device.type == "cuda"), "data": digest,
        "runner": os.environ.get("FFR_RUNNER", "python"), "seconds": round(seconds, 2), **more,
    }  # fmt: skip


# -- writing and reading -----------------------------------------------------------------------------------------------
def tidy(value):
    """Numbers rounded to six significant digits, non-finite ones as text, nested; so that records stay small."""
    if isinstance(value, dict):
        return {name: tidy(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [tidy(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else str(value)
    return value


def save(spec: RunSpec, status: str, curve: dict, metrics: dict, made: dict, root: Path | None = None) -> Path:
    """Writes the record of one run, whole or not at all; returns its path."""
    record = {
        "format": FORMAT, "key": key(spec), "seed": spec.seed, "scale": spec.scale, "settings": to_dict(spec),
        "status": status, "curve": tidy(curve), "metrics": tidy(metrics), "provenance": made,
    }  # fmt: skip
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return write_atomically(record_path(spec, root), text.replace(',"', ',\n"') + "\n")  # one setting a line


def parse(content: bytes, path: Path | str) -> dict:
    """The record in `content`, verified for the file `path`, its settings parsed under "spec".

    Raises ValueError that names the file and the fault.
    """
    try:
        record = json.loads(content)
        spec = from_dict(record["settings"])
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']}, this code reads {FORMAT}")
        same = (key(spec), spec.seed, spec.scale) == (record["key"], record["seed"], record["scale"])
        if not same or Path(path).parts[-3:] != record_path(spec).parts[-3:]:  # elsewhere it would count twice
            raise ValueError("its settings do not hash to its name and folder")
        for part, kind in (("status", str), ("curve", dict), ("metrics", dict), ("provenance", dict)):
            if not isinstance(record.get(part), kind):
                raise ValueError(f"it lacks {part}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"record {path} is damaged, or of other code than this: {error}") from error
    made = record["provenance"]
    stale = not same_code(spec, made.get("device", "cpu") != "cpu", made.get("code"))
    return record | {"spec": spec, "path": str(path), "stale": stale}


def read(path: Path) -> dict:
    """One verified record of the store. Raises ValueError as `parse` does."""
    return parse(Path(path).read_bytes(), path)


def lookup(spec: RunSpec, root: Path | None = None) -> dict | None:
    """The stored record of `spec`, or None. Raises ValueError for a damaged one: it is never silently skipped."""
    try:
        return read(record_path(spec, root))
    except FileNotFoundError:
        return None


def current(spec: RunSpec, root: Path | None = None) -> dict | None:
    """As `lookup`, but None for a record made by other code where those are to be made anew (FFR_STALE=rerun)."""
    record = lookup(spec, root)
    choose("FFR_STALE", wanted := os.environ.get("FFR_STALE", ""), ("", "rerun"))
    return None if record and record["stale"] and wanted == "rerun" else record


def load_all(root: Path | None = None, scale: str | None = None) -> tuple[list[dict], list[Problem]]:
    """All records (of one scale), in the order of their paths, and the problems met. ValueError: an unknown scale."""
    if scale:
        choose("scale", scale, SCALES)
    records, problems = [], []
    for path in sorted(Path(root or results_folder()).glob(f"runs/{scale or '*'}/*/*.json")):
        try:
            records.append(read(path))
        except FileNotFoundError:  # another process is making it anew (FFR_STALE=rerun)
            continue
        except ValueError as error:
            problems.append(Problem(str(path), str(error)))
    return records, problems


def frame(records: list[dict]) -> pd.DataFrame:
    """One row a record: settings with dotted names (`weight.strength`), scalar metrics, key, seed, status, path.

    `fresh` marks the seeds that enter 8_how_firm alone: every other table is made of the rows where it is false.
    """
    rows = []
    for record in records:
        numbers = {name: value for name, value in record["metrics"].items() if not isinstance(value, (dict, list))}
        numbers = {name: float(v) if v in ("nan", "inf", "-inf") else v for name, v in numbers.items()}  # see `tidy`
        more = {name: record[name] for name in ("key", "seed", "scale", "status", "stale", "path")}
        more["fresh"] = record["seed"] in FRESH
        rows.append(record["settings"] | numbers | more)
    return pd.json_normalize(rows)


def index_lines(records: list[dict], problems: list[Problem], root: Path) -> list[str]:
    """The lines of INDEX.md: one a record under `root` with its main numbers, by scale and net."""
    lines = ["# Index of run records", "", f"{len(records)} records. Generated; do not edit.", ""]
    for folder, group in itertools.groupby(records, lambda record: Path(record["path"]).parent.relative_to(root)):
        lines += ["", f"## {folder.as_posix().removeprefix('runs/')}", ""]
        lines += ["| record | status | test accuracy | sparsity | seconds |", "|---|---|---|---|---|"]
        for record in group:
            path, m = Path(record["path"]), record["metrics"]
            sparsity = f"{100 * m['unstructured_sparsity']:.1f} %" if "unstructured_sparsity" in m else ""
            accuracy = f"{m['test_accuracy']:.2f}" if "test_accuracy" in m else ""
            numbers = f"{record['status']} | {accuracy} | {sparsity} | {record['provenance']['seconds']}"
            lines.append(f"| [{path.stem}]({(folder / path.name).as_posix()}) | {numbers} |")
    return lines + [f"| damaged: {p.path} | {p.why} | | | |" for p in problems]


def write_index(root: Path | None = None) -> Path:
    """Regenerates INDEX.md under `root` (default: the results of this checkout)."""
    root = Path(root or results_folder())
    return write_atomically(root / "INDEX.md", "\n".join(index_lines(*load_all(root), root)) + "\n")
