"""All pictures, in one style: colour-blind safe, lines named where they end, bands of 95 % intervals, good in print.

Pictures are drawn from `rows` of the records of one net at one scale, and return a matplotlib Figure; where nothing was
run they say so. `saving` writes them.
"""

from __future__ import annotations

import itertools
import math
from operator import attrgetter

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ffrlib import frames, tables
from ffrlib.catalogue import middle, strengths
from ffrlib.scales import BASES
from ffrlib.spec import CRITERIA, RunSpec, key

BLUE, RED, GREEN, GOLD, PINK, GREY, BLACK = "#0072B2", "#D55E00", "#00805E", "#B87A00", "#B4558A", "#767676", "#000000"
STYLE = {
    "font.size": 9, "axes.titlesize": 9.5, "axes.labelsize": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#e6e6e6", "grid.linewidth": 0.6, "axes.axisbelow": True, "lines.linewidth": 1.6,
    "lines.markersize": 4, "figure.dpi": 110, "savefig.dpi": 160, "svg.hashsalt": "ffrlib", "svg.fonttype": "path",
}  # fmt: skip
FAMILIES = {"group lasso": "group_lasso", "exclusive sparsity": "exclusive_sparsity", "group L1/2": "group_l12"}
FORMS = {  # prefix of a family's criterion -> look: name, colour, line, marker
    "": ("flat", BLUE, "-", "o"),
    "hierarchical_squared_": ("squared", RED, "--", "s"),
    "hierarchical_square_rooted_": ("√", GREEN, ":", "^"),
}
LEADS = ((GREY, "o"), (BLUE, "s"), (RED, "^"), (GREEN, "v"), (PINK, "D"))  # colours and markers of `leads`
LOOKS = {"plain": ("plain", BLACK, "-", "*"), "control": ("control", GOLD, "--", "s"),
         "length": ("length", GREEN, ":", "^"), "curvature": ("curvature", PINK, "-.", "v"),
         "both": ("FFR", BLUE, "-", "o")}  # fmt: skip
BESIDE = {"plain": LOOKS["plain"], "l1": ("L1", GREY, "-.", "v")}  # what HGSR's criteria are drawn with
OTHERS = [(colour, line, marker) for line, marker in (("-", "D"), ("--", "P"), (":", "X"))
          for colour in (RED, GREY, GREEN, BLUE, PINK, GOLD)]  # fmt: skip
SHORT = {"hierarchical_squared_": "squared ", "hierarchical_square_rooted_": "√", "group_l12": "GL12",
         "group_lasso": "GL", "exclusive_sparsity": "ES", "l1": "L1", "l2": "L2", ", from": ",",
         "both": "FFR", "_": " "}  # fmt: skip
PERCENT = {  # shares, which are shown in percent
    "unstructured_sparsity": "weights with |w| < 0.001 (%)", "removable_weight_share": "prunable weights (%)",
    "removable_channel_share": "prunable channels (%)", "macs_left_share": "MACs left (%)",
    "parameters_left_share": "parameters left (%)", "swept_sparsity": "weights below threshold (%)",
}  # fmt: skip
AXES = PERCENT | {
    "test_accuracy": "test accuracy (%)", "zeroed_test_accuracy": "test accuracy with\nsmall weights zeroed (%)",
    "cut_50_test_accuracy": "test accuracy with half\nthe channels cut (%)",
    "swept_accuracy": "test accuracy with\nthose zeroed (%)",
    "cut_test_accuracy": "test accuracy after the cut,\nno fine-tuning (%)",
    "tuned_test_accuracy": "test accuracy after\nfine-tuning (%)", "validation_accuracy": "validation accuracy (%)",
    "cut_30_test_accuracy": "test accuracy with 30 %\nof the channels cut (%)", "activation_mean": "mean activation",
    "flow_length": "length of the flow", "straightness": "straightness (1: straight)",
    "loss": "cross-entropy in training", "width": "width factor",
    "macs_removed": "MACs removed (%)", "time_saved": "time saved (%)",
}  # fmt: skip


# -- from records to points --------------------------------------------------------------------------------------------
def net_name(spec: RunSpec) -> str:
    """A run's net as the catalogue calls it, e.g. `vgg16_cifar100`; its model's name where it has no other."""
    what = attrgetter("data", "model", "shortcut")
    return next((name for name, base in BASES[spec.scale].items() if what(base) == what(spec)), spec.model)


def rows(records: list[dict]) -> pd.DataFrame:
    """One row a finished record: `frames.frame_of` with shares in percent, its labels (`tables.LABELS`; strength, width
    and amount as numbers: a strength is that of the strongest penalty), the net's name and the record itself. Runs of
    which another seed diverged are left out: a mean over those that survived would flatter."""
    broken = {r["key"] for r in records if r["status"] == "diverged"}
    done = [r for r in records if r["status"] == "finished" and r["key"] not in broken]
    labels = tables.LABELS | {
        "strength": lambda s: max(tables.strengths_of(s), default=0.0), "amount": lambda s: s.pruning.amount,
        "width": lambda s: s.width, "model": net_name,
    }  # fmt: skip
    labels = {name: [read(r["spec"]) for r in done] for name, read in labels.items()}
    frame = frames.frame_of(done).assign(**labels, record=done)
    frame["tuned_test_accuracy"] = frame["test_accuracy"]  # what it is for a net that was cut
    for what in ("macs", "parameters"):
        frame[f"{what}_left_share"] = 1 - frame[f"{what}_removed"]
    return frame.assign(**{name: 100 * frame[name] for name in PERCENT if name in frame})


def at_middle(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows at the middle strength of their arm's grid (of the strengths present, where the arm has no grid)."""

    def centre(own: pd.DataFrame) -> float:
        spec, present = own["record"].iloc[0]["spec"], sorted(set(own["strength"]))
        chosen = middle(strengths(spec.scale, net_name(spec), own["arm"].iloc[0]))
        return (chosen if chosen and chosen[0] in present else middle(present))[0]

    groups = [own[own["strength"] == centre(own)] for _, own in frame.groupby(["net", "arm"])]
    return pd.concat(groups).sort_index() if groups else frame


def near(frame: pd.DataFrame, points: float) -> pd.DataFrame:
    """The rows at strengths that cost at most `points` of mean test accuracy beside the plain net. Beyond that nobody
    would go, and a net at chance would set the axes."""
    reached = frame.groupby(["arm", "strength"], dropna=False)["test_accuracy"].transform("mean")
    return frame[~(reached < frame.loc[frame["arm"] == "plain", "test_accuracy"].mean() - points)]


def unrolled(frame: pd.DataFrame, columns: dict[str, list]) -> pd.DataFrame:
    """A row for each entry of the lists of {new column: a list for each row}, e.g. a curve's epochs and losses."""
    frame = frame.drop(columns=[c for c in columns if c in frame]).assign(**columns).explode(list(columns))
    frame = frame.astype(dict.fromkeys(columns, float))
    return frame.assign(**{name: 100 * frame[name] for name in columns if name in PERCENT})


def means(frame: pd.DataFrame, by: str, x: str, y: str) -> np.ndarray:
    """x mean, y mean, y low, y high over the rows of each value of `by`, ascending in `by`; shape (values, 4)."""
    frame = frame.dropna(subset=[x, y]) if {x, y} <= set(frame.columns) else frame[:0]
    points = [(group[x].mean(), *tables.interval(group[y])) for _, group in frame.groupby(by)]
    return np.array(points, dtype=float).reshape(-1, 4)


# -- drawing -----------------------------------------------------------------------------------------------------------
def use_style() -> None:
    """Sets matplotlib's defaults to the one style, for this process."""
    matplotlib.rcParams.update(STYLE)


def short(text: str) -> str:
    """The name of an arm or score as it is written in a picture."""
    for long, brief in SHORT.items():
        text = text.replace(long, brief)
    return text


def place(name: str) -> tuple:
    """Where an arm stands in a list: the plain net, FFR's arms, the criteria in order, all others by name."""
    order = [*LOOKS, *CRITERIA]
    return (order.index(name) if name in order else len(order), name)


def panels(nrows: int, ncols: int, width: float = 3.1, height: float = 2.5, names: float = 0.9):
    """A figure with `names` inches for the names right of each of its axes, and the axes, shape (nrows, ncols)."""
    use_style()
    fig = Figure(figsize=(width * ncols, height * nrows))
    axes = fig.subplots(nrows, ncols, squeeze=False)
    whole, beside, below = fig.get_size_inches(), names + 0.7, 0.8
    fig.subplots_adjust(0.7 / whole[0], 0.5 / whole[1], 1 - names / whole[0], 1 - 0.3 / whole[1],
                        beside / (width - beside), below / (height - below))  # fmt: skip
    return fig, axes


def name_lines(ax, ends: list[tuple[float, float, str, str]], none: str = "not run", size: float = 8) -> None:
    """Writes the text of each line's end (x, y, text, colour) right of the axes, as near its height as others allow;
    without any, the text `none` in their middle."""
    if not ends:
        ax.text(0.5, 0.7, none, transform=ax.transAxes, ha="center", color=GREY)  # a star alone is in the middle
        if not ax.has_data():  # no numbers on axes that show none
            ax.grid(False)
            ax.tick_params(which="both", left=False, bottom=False, labelleft=False, labelbottom=False)
    ax.autoscale_view()
    place = ax.transData + ax.transAxes.inverted()
    ends = sorted(((*place.transform((x, y)), text, colour) for x, y, text, colour in ends), key=lambda end: end[1])
    gap = size * 1.2 / (72 * ax.get_window_extent().height / ax.figure.dpi)
    heights = [min(max(end[1], 0), 1) for end in ends]
    for k in range(1, len(heights)):
        heights[k] = max(heights[k], heights[k - 1] + gap)
    for k in reversed(range(len(heights))):  # not above the axes
        heights[k] = min(heights[k], 1 - gap * (len(heights) - 1 - k))
    for (x, y, text, colour), height in zip(ends, heights):
        arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "relpos": (0, 0.5), "shrinkA": 1}
        ax.annotate(text, (x, y), (1.05, height), "axes fraction", "axes fraction", arrow, annotation_clip=False,
                    color=colour, fontsize=size, va="center")  # fmt: skip


def plot(ax, frame: pd.DataFrame, looks: dict[str, tuple], x: str, y: str, by: str, column: str = "arm",
         published=()) -> None:  # fmt: skip
    """A line through the `means` of each of `looks`: {value of `column`: (name, colour, line, marker)}, with a band for
    their intervals, or bars where the line turns back. The plain net is a star where it has one point only, and a level
    line where that point has no strength; `published`: (x, y) of points beside them. The axis reaches as far beyond
    the means as these do from each other: bands of two or three seeds may leave it."""
    ends, lines = [], {value: means(frame[frame[column] == value], by, x, y) for value in looks}
    ax.set(xlabel=AXES.get(x, x), ylabel=AXES.get(y, y), xscale="log" if x in ("strength", "threshold") else "linear")
    for value, (text, colour, line, marker) in looks.items():
        points = lines[value]
        if value == "plain" and len(points) == 1:
            if x == "strength":
                ax.axhline(points[0, 1], color=BLACK, ls=":")
            else:
                ax.plot(*points[0, :2], "*", color=BLACK, markersize=9)
        elif len(points):
            ax.plot(points[:, 0], points[:, 1], line, color=colour, marker=marker if len(points) < 12 else "")
            x_mean, _, low, high = points.T
            if y in PERCENT or y.endswith("accuracy"):  # few seeds give intervals that reach beyond what can be
                low, high = low.clip(0, 100), high.clip(0, 100)
            steps = np.diff(points[:, 0])
            if len(points) > 1 and (all(steps > 0) or all(steps < 0)):
                ax.fill_between(x_mean, low, high, color=colour, alpha=0.13 if len(looks) < 7 else 0.05, linewidth=0)
            else:  # a band needs two points, and a line that does not turn back
                ax.vlines(x_mean, low, high, color=colour, alpha=0.35, linewidth=1)
            ends.append((*points[points[:, 0].argmax(), :2], text, colour))
    if len(beside := np.asarray(published, dtype=float).reshape(-1, 2)):
        ax.plot(*beside.T, "D", color=GREY, markersize=3.5)
        ends.append((*beside[beside[:, 0].argmax()], "published", GREY))
    if len(middles := np.concatenate([beside[:, 1], *(points[:, 1] for points in lines.values())])):
        room = max(np.ptp(middles), 0.02 * abs(middles.max()))
        bottom, top = ax.get_ylim()
        ax.set_ylim(max(bottom, middles.min() - room), min(top, middles.max() + room))
    name_lines(ax, ends, "no penalty run yet" if len(middles) else "not run")


def curves(frame: pd.DataFrame) -> Figure:
    """Loss over the epochs of training, a line for each arm at its middle strength, of the nets that are not cut; of
    that net, width and recipe which most runs share."""
    uncut = frame[frame["amount"] == 0]
    plain = pd.Series([key(tables.plain_of(record["spec"])) for record in uncut["record"]], uncut.index, dtype=object)
    uncut = at_middle(uncut[plain == plain.value_counts().idxmax()] if len(plain) else uncut)
    losses = [record["curve"]["loss"] for record in uncut["record"]]
    epochs = [range(1, len(loss) + 1) for loss in losses]
    return arms(unrolled(uncut, {"epoch": epochs, "loss": losses}), [("epoch", "loss")], by="epoch")


def families(frame: pd.DataFrame, pairs: list[tuple[str, str]], by: str = "strength", among=CRITERIA) -> Figure:
    """HGSR's criteria: a row for each (x, y) of `pairs`, a column for each family that has any `among` the criteria
    asked for, with L1; the star has no penalty."""
    asked = {title: family for title, family in FAMILIES.items() if any(name.endswith(family) for name in among)}
    fig, axes = panels(len(pairs), len(asked))
    for (x, y), row in zip(pairs, axes):
        for ax, (title, family) in zip(row, asked.items()):
            plot(ax, frame, BESIDE | {prefix + family: look for prefix, look in FORMS.items()}, x, y, by)
            ax.set(title=title if ax in axes[0] else "", ylabel=AXES.get(y, y) if ax is row[0] else "")
    return fig


def arms(frame: pd.DataFrame, pairs: list[tuple[str, str]], by: str = "strength", column: str = "arm",
         published: dict | None = None) -> Figure:  # fmt: skip
    """A panel for each (x, y) of `pairs`; a line for each value of `column` through its means at each value of `by`.
    `published`: {y: points (x, y) to set beside them}."""
    fig, (axes,) = panels(1, len(pairs), 3.3 if len(pairs) > 2 else 4.4, 2.8, 0.9 if len(pairs) > 2 else 1.3)
    values = sorted(set(frame[column]), key=place)
    others = dict(zip((v for v in values if v not in LOOKS), itertools.cycle(OTHERS)))
    looks = {v: LOOKS.get(v) or (short(v), *others[v]) for v in values}
    for ax, (x, y) in zip(axes, pairs):
        plot(ax, frame, looks, x, y, by, column, (published or {}).get(y, ()))
    return fig


def layer_sparsity(frame: pd.DataFrame, column: str = "arm") -> Figure:
    """Share of small weights in each layer (columns) for each arm (rows), mean over the rows of `frame`, in percent."""
    table = 100 * frame.groupby(column)[[c for c in frame if c.startswith("layer_")]].mean().dropna(axis=1)
    table = table.loc[sorted(table.index, key=place)]
    fig, ((ax,),) = panels(1, 1, 7.2, 0.9 + 0.26 * max(len(table), 2))
    fig.subplots_adjust(left=0.26, right=0.98)
    if table.empty:
        name_lines(ax, [])
        return fig
    values, layers = table.to_numpy(), table.shape[1]
    ax.imshow(values, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (i, j), value in np.ndenumerate(values if layers <= 20 else values[:, :0]):
        ax.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=8, color="white" if value > 60 else "black")
    ticks = range(0, layers, math.ceil(layers / 20))
    ax.set_xticks(ticks, [str(tick + 1) for tick in ticks])
    ax.set_yticks(range(len(table)), map(short, table.index), fontsize=8)
    ax.set_xlabel("convolution, from input to output: weights with |w| < 0.001 (%)")
    ax.grid(False)
    return fig


def dots(frame: pd.DataFrame, measures: list[str], column: str = "arm") -> Figure:
    """Mean and 95 % interval of each of `measures` (panels) for each value of `column` (rows); the dotted lines are the
    plain net's means."""
    use_style()
    values = sorted(set(frame[column]), key=place)
    fig = Figure(figsize=(1.8 + 2.3 * len(measures), 0.9 + 0.22 * max(len(values), 2)), layout="constrained")
    for ax, measure in zip(fig.subplots(1, len(measures), sharey=True, squeeze=False)[0], measures):
        for y, value in enumerate(values):
            mean, low, high = tables.interval(frame.loc[frame[column] == value, measure].dropna())
            ax.plot(np.clip([low, high], 0, 100), [y, y], color=BLUE, linewidth=2.5, alpha=0.35)
            ax.plot(mean, y, "*" if value == "plain" else "o", color=BLACK if value == "plain" else BLUE)
            if value == "plain":
                ax.axvline(mean, color=BLACK, linestyle=":", linewidth=0.8)
        ax.set(xlabel=AXES.get(measure, measure), ylim=(len(values) - 0.5, -0.5))
        ax.set_yticks(range(len(values)), map(short, values))
    return fig


def leads(table: pd.DataFrame, columns: dict[str, str], label: str) -> Figure:
    """The leads of a table of `ffrlib.firmness`, a row a part: for each of {column: name} its mean and limits; those
    right of the dashed line are large enough to matter. Rows without any are left out."""
    use_style()
    run = table.reindex(columns=list(columns)).apply(pd.to_numeric, errors="coerce").notna().any(axis=1)
    table = table[run] if run.any() else table
    several = "net" in table and table["net"].nunique() > 1
    where = [f" ({net})" if several else "" for net in table.get("net", table["part"])]
    fig = Figure(figsize=(6.4, 0.9 + 0.12 * (1.5 + len(columns)) * len(table)))
    ax = fig.subplots()
    for k, ((column, name), (colour, marker)) in enumerate(zip(columns.items(), LEADS)):
        own = table[[column, f"{column} low", f"{column} high"]].apply(pd.to_numeric, errors="coerce")
        mean, low, high = own.to_numpy().T
        y = np.arange(len(table)) + 0.7 * ((k + 0.5) / len(columns) - 0.5)
        ax.hlines(y, low, high, color=colour, linewidth=1.2)
        ax.plot(mean, y, marker, color=colour, label=name)
    ax.axvline(0, color=BLACK, linewidth=0.8)
    ax.axvline(1, color=GREY, linewidth=0.8, linestyle="--")
    ax.set_yticks(range(len(table)), [f"{c}: {short(p)}{w}" for c, p, w in zip(table["claim"], table["part"], where)])
    ax.invert_yaxis()
    ax.set_xlabel(label)
    ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.75 / fig.get_size_inches()[1]), ncols=3, frameon=False)
    return fig
