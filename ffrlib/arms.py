"""An arm of an experiment, a plain run with a penalty at a strength, and when it has its turn (`catalogue`)."""

from __future__ import annotations

from dataclasses import replace

from ffrlib.scales import FIRST, FLOW_ARMS, FURTHER, HSQ_GL12
from ffrlib.spec import ActivationControl, FlowPenalty, RunSpec, WeightPenalty


def flow_arm(base: RunSpec, arm: str, strength: float, **options) -> RunSpec:
    """`base` with one of FLOW_ARMS at a strength; `options` are FlowPenalty's (a tap also moves the control's)."""
    length, curvature, control = (strength * part for part in FLOW_ARMS[arm])
    if control:
        return replace(base, activation=ActivationControl(control, options.get("tap", "default")))
    return replace(base, flow=FlowPenalty(length, curvature, **options))


def weight_arm(base: RunSpec, name: str, strength: float, grouping: str = "feature", **options) -> RunSpec:
    return replace(base, weight=WeightPenalty(name, strength, grouping, **options))


def middle(values: list[float]) -> list[float]:
    """The middle one of an ascending list, as a list; empty for an empty one."""
    return values[len(values) // 2 : len(values) // 2 + 1]


def compared(scale: str, values: list) -> list:
    """Of an arm's ascending strengths the one at which H2 compares nets, as a list: the middle; at scale laptop the
    weakest, since its middle ones cost every criterion more than a point (docs/protocol.md)."""
    return values[:1] if scale == "laptop" else middle(values)


def turn(k: int, grid: list[float]) -> float:
    """When the k-th strength has its turn: 0 for the middle, a tenth later a step away from it, the stronger first."""
    away = k - len(grid) // 2
    return 0.1 * abs(away) - 0.01 * (away > 0)


def later(net: str) -> int:
    """What is added to the priority of the runs of a net: those of FURTHER come after the rest."""
    return 7 * (net in FURTHER)


def net_priority(net: str, usual: float) -> float:
    """The priority of a net's runs that are not cut: those of FIRST early, all others as `usual`."""
    return 0.9 if net in FIRST else usual + later(net)


def published_loss(base: RunSpec, grid: list[float]) -> list[RunSpec]:
    """`base` with the loss of HGSR's published script, squared group L1/2 mixed with L1 half and half, at the script's
    own strength, 1e-3, and where its half of squared group L1/2 is as strong as the middle of that criterion's grid."""
    asked = {1e-3, *(float(f"{2 * s:.3g}") for s in middle(grid))}
    return [weight_arm(base, HSQ_GL12, s, mix=0.5, second="l1") for s in sorted(asked)]
