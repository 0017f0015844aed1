"""Numbers of other papers and codes (`data/published.csv`), and our own cuts beside them."""

import pandas as pd

from ffrlib.files import REPOSITORY


def published() -> pd.DataFrame:
    """data/published.csv with the change of accuracy; what was not available to us is an empty cell."""
    rows = pd.read_csv(REPOSITORY / "data" / "published.csv")
    return rows.assign(accuracy_change=(rows["pruned_accuracy"] - rows["baseline_accuracy"]).round(2))


def with_ours(papers: pd.DataFrame, cut: pd.DataFrame) -> pd.DataFrame:
    """Rows of `published` and, below those of a net, means of our own cuts of that net (those of `tables.cells` that were
    run); what the label of a net says beyond data and model, like "A published", stands in front of the method."""
    done = cut[cut["n"] > 0]
    data, model, rest = zip(*[(*label.split(" ", 2), "")[:3] for label in done["net"]]) if len(done) else ((), (), ())
    methods = zip(rest, done["arm"], done["strength"], done["score"], done["amount"])
    columns = {
        "dataset": data, "model": model, "method": [", ".join(filter(None, row)) for row in methods],
        "baseline_accuracy": done["base_test_accuracy"], "pruned_accuracy": done["test_accuracy"],
        "params_removed_pct": done["parameters_removed"] * 100, "macs_removed_pct": done["macs_removed"] * 100,
        "source": [f"this companion, n = {n}, {keys}" for n, keys in zip(done["n"], done["keys"])],
        "accuracy_change": done["accuracy_change"],
    }  # fmt: skip
    ours, nets = pd.DataFrame(columns, columns=papers.columns), ["dataset", "model"]
    order = {net: place for place, net in enumerate(map(tuple, papers[nets].drop_duplicates().to_numpy()))}
    both = pd.concat([papers, ours[[net in order for net in zip(ours["dataset"], ours["model"])]]], ignore_index=True)
    return both.loc[sorted(both.index, key=lambda i: order[tuple(both.loc[i, nets])])]
