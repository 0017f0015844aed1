"""Plain nets, convolution after convolution: AlexNet-small, VGG11-small, VGG16, VGG19 and a small net for the digits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ffrlib.models.layers import TRACKED, ChannelGroup, Dropout, Layout, check_widths, initialise, resolve_tap


@dataclass(frozen=True)
class PlainPlan:
    """3x3 convolutions in stages with a 2x2 max pool after each, average pooling to `grid` x `grid`, linear layers."""

    stages: tuple[tuple[int, ...], ...]
    norm: bool = True
    bias: bool = True  # of the convolutions
    grid: int = 1
    hidden: tuple[int, ...] = ()  # widths of hidden linear layers: never scaled, never cut
    dropout: str = ""  # "before" or "after" each hidden linear layer
    last_pool: bool = True  # max pool after the last stage too
    in_channels: int = 3
    init: str = "fan_out"  # see layers.initialise

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(w for stage in self.stages for w in stage)


def _vgg(*depths: int) -> PlainPlan:
    return PlainPlan(tuple((w,) * d for w, d in zip((64, 128, 256, 512, 512), depths)), init="vgg")


_SMALL = ((16,), (32,), (64, 64), (128, 128), (128, 128))
PLANS = {
    "digits_cnn": PlainPlan(((16,) * 4, (32,) * 2), bias=False, last_pool=False, in_channels=1),
    "alexnet_small": PlainPlan(((8,), (16,), (32, 16, 16)), False, grid=4, hidden=(128, 128), dropout="before",
                               init="torch"),
    "vgg11_small": PlainPlan(_SMALL, False, hidden=(128, 128), dropout="after", init="vgg"),
    "vgg11_small_bn": PlainPlan(_SMALL, hidden=(128, 128), dropout="after", init="vgg"),
    "vgg16": _vgg(2, 2, 3, 3, 3),
    "vgg19": _vgg(2, 2, 4, 4, 4),
}  # fmt: skip


class Plain(nn.Module):
    """A plain net of the shape that `layout` and `plan` give; (N, in_channels, H, W) -> (N, num_classes)."""

    default_tap = "post_activation"
    taps = TRACKED

    def __init__(self, layout: Layout, plan: PlainPlan):
        super().__init__()
        widths = layout.widths
        check_widths(layout.name, widths, len(plan.widths))
        self.layout, self.grid = layout, plan.grid
        inputs = (plan.in_channels, *widths[:-1])
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1, bias=plan.bias) for i, o in zip(inputs, widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for o in widths if plan.norm)
        ends, at = set(), 0
        for stage in plan.stages if plan.last_pool else plan.stages[:-1]:
            at += len(stage)
            ends.add(at - 1)
        self.pool_after = frozenset(ends)  # indices of convolutions
        head, size = [], widths[-1] * plan.grid**2
        for units in plan.hidden:
            head += [Dropout()] * (plan.dropout == "before") + [nn.Linear(size, units), nn.ReLU()]
            head += [Dropout()] * (plan.dropout == "after")
            size = units
        self.head = nn.Sequential(*head, nn.Linear(size, layout.num_classes))
        initialise(self, plan.init)

    def _run(self, x: torch.Tensor, tap: str | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        features = []
        for i, conv in enumerate(self.convs):
            before = conv(x)
            if self.norms:
                before = self.norms[i](before)
            x = F.relu(before)  # out of place: `before` may be a feature
            if tap is not None:
                features.append(before if tap == "pre_activation" else x)
            if i in self.pool_after:
                x = F.max_pool2d(x, 2)
        if self.grid == 1:
            x = x.mean((2, 3))
        elif x.shape[-2:] != (self.grid, self.grid):
            x = F.adaptive_avg_pool2d(x, self.grid)
        return self.head(x.flatten(1)), features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._run(x, None)[0]

    def flow(self, x: torch.Tensor, tap: str | None = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits and one feature (N, C, H, W) per convolution: after its ReLU, or before it ("pre_activation")."""
        return self._run(x, resolve_tap(self, tap))

    def shortcuts(self, tap: str | None = None) -> list[None]:
        """A plain net has no shortcut: None for each of the L - 1 steps."""
        resolve_tap(self, tap)
        return [None] * (len(self.convs) - 1)

    def groups(self) -> list[ChannelGroup]:
        """One "inner" group a convolution, read by the next convolution or by the first linear layer."""
        first = next(f"head.{i}" for i, m in enumerate(self.head) if isinstance(m, nn.Linear))
        readers = [f"convs.{i}" for i in range(1, len(self.convs))] + [first]
        return [
            ChannelGroup(f"convs.{i}", c.out_channels, (f"convs.{i}",), (f"norms.{i}" if self.norms else "",), (r,), "inner")
            for i, (c, r) in enumerate(zip(self.convs, readers))
        ]
