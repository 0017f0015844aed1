"""Records as the rows of a data frame: metrics as numbers, shares derived from them, and what computed them."""

import pandas as pd

BOTH = ("removable_weight_share", "removable_channel_share")
ACCURACY = ["validation_accuracy", "test_accuracy", "zeroed_test_accuracy"]
SPARSE = [*ACCURACY, "unstructured_sparsity", "zero_kernels", "zero_channels", "removable_channels", *BOTH,
          "parameters_left", "macs_left"]  # fmt: skip
FLOW = [*ACCURACY, "unstructured_sparsity", "zero_channels", "removable_channels", "silent_channels", *BOTH,
        "cut_30_test_accuracy", "cut_50_test_accuracy", "flow_length", "flow_curvature", "straightness",
        "turning_angle", "activation_mean"]  # fmt: skip
PRUNED = ["base_test_accuracy", "cut_test_accuracy", "validation_accuracy", "test_accuracy", "accuracy_change",
          "parameters_removed", "macs_removed", "parameters_left", "macs_left", "held_back", "worst_deviation",
          *(f"latency_{what}" for n in (1, 64)
            for what in (f"ms.batch_{n}", f"ms.batch_{n}_before", f"left.batch_{n}"))]  # fmt: skip


def frame_of(records: list[dict]) -> pd.DataFrame:
    """One row a record: key, seed, scale, status, stale, processor, its metrics as numbers (`layer_1`: that layer's
    sparsity) and shares derived from them; NaN where a record lacks one."""
    rows = []
    for r in records:
        row = {n: v for n, v in r["metrics"].items() if not isinstance(v, (dict, list))}
        row |= {f"latency_ms.{n}": v for n, v in r["metrics"].get("latency_ms", {}).items()}
        rows.append(row | {f"layer_{k}": v for k, v in enumerate(r["metrics"].get("layer_sparsity", ()), 1)})
    frame = pd.DataFrame(rows)
    wanted = dict.fromkeys([*SPARSE, *FLOW, *PRUNED, "parameters", "macs", *frame.columns])
    frame = frame.reindex(columns=list(wanted)).apply(pd.to_numeric, errors="coerce")
    for what in ("parameters", "macs"):
        frame[f"{what}_removed"] = 1 - frame[f"{what}_left"] / frame[what]
    for n in (1, 64):  # of the uncut net's, which was timed just before
        frame[f"latency_left.batch_{n}"] = frame[f"latency_ms.batch_{n}"] / frame[f"latency_ms.batch_{n}_before"]
    frame["accuracy_change"] = frame["test_accuracy"] - frame["base_test_accuracy"]
    frame = frame.assign(processor=[processor(r["provenance"]) for r in records])
    return frame.assign(**{name: [r[name] for r in records] for name in ("key", "seed", "scale", "status", "stale")})


def processor(provenance: dict) -> str:
    """What computed a run: a GPU, or the kind of a CPU. Between two kinds one run's prunable share can differ by ten
    points, so a pair of runs of two kinds says less (docs/protocol.md)."""
    device = provenance.get("device", "cpu")
    return provenance.get("cpu", "") if device == "cpu" else device


def across(first: pd.DataFrame, second: pd.DataFrame) -> pd.Series:
    """By seed, whether the two runs of a pair (rows with a seed each) are of two kinds of processor."""
    kinds = first.merge(second, on="seed").drop_duplicates("seed").set_index("seed")
    return kinds["processor_x"] != kinds["processor_y"]
