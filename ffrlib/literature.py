"""Numbers of other papers and codes (`data/published.csv`), and our own cuts beside them."""

import pandas as pd

from ffrlib.files import REPOSITORY


def published() -> pd.DataFrame:
    """data/published.csv with the change of accuracy; what was not available to us is an empty cell."""
    rows = pd.read_csv(REPOSITORY / "data" / "published.csv")
    return rows.assign(accuracy_change=(rows["pruned_accuracy"] - rows["baseline_accuracy"]).round(2))


def with_ours(papers: pd.DataFrame, cut: pd.DataFrame) -> pd.DataFrame:
    """`papers` (rows of `published`) and, below those of a net, means of our own cuts of that net: the rows of
    `tables.cells` that were run. What a net's label says beyond data and model, like "A published", goes to the method.
    """
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
    ours, net = pd.DataFrame(columns, columns=papers.columns), ["dataset", "model"]
    blocks = [
        rows[(rows[net] == own).all(axis=1)]
        for own in papers[net].drop_duplicates().to_numpy()
        for rows in (papers, ours)
    ]
    return pd.concat([block for block in blocks if len(block)])
