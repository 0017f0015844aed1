"""Residual nets of two-convolution blocks: CIFAR ResNets (options A and B), HGSR's small ones, ResNet-18 for 64x64."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ffrlib.models.layers import ChannelGroup, Layout, Net, PadShortcut, initialise
from ffrlib.spec import require


@dataclass(frozen=True)
class ResNetPlan:
    """`depths[s]` blocks of `streams[s]` channels in stage s; each stage but the first starts with stride 2."""

    depths: tuple[int, ...]
    streams: tuple[int, ...]
    big_stem: bool = False  # 7x7 with stride 2 and a 3x3 max pool of stride 2; else 3x3 with stride 1
    init: str = "fan_out"

    @property
    def widths(self) -> tuple[int, ...]:
        """The stem, then both convolutions of each block."""
        return (self.streams[0], *(w for w, d in zip(self.streams, self.depths) for _ in range(2 * d)))


PLANS = {
    **{f"resnet{6 * n + 2}": ResNetPlan((n,) * 3, (16, 32, 64), init="fan_in") for n in (3, 5, 9, 18)},
    "resnet18_small": ResNetPlan((2, 2, 2, 2), (8, 16, 32, 64), big_stem=True),
    "resnet34_small": ResNetPlan((3, 4, 6, 3), (8, 16, 32, 64), big_stem=True),
    "resnet18_tiny": ResNetPlan((2, 2, 2, 2), (64, 128, 256, 512)),
}


class Projection(nn.Sequential):
    """Option B: 1x1 convolution of stride 2 and batch norm. The pixels are skipped before the convolution: of few
    channels in channels_last, oneDNN's gradient of a strided one writes past its workspace (its issue 6035)."""

    def __init__(self, earlier: int, later: int):
        super().__init__()
        self.conv = nn.Conv2d(earlier, later, 1, bias=False)
        self.bn = nn.BatchNorm2d(later)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x[:, :, ::2, ::2]))

    def carry(self, x: torch.Tensor) -> torch.Tensor:
        """The same as a step of the flow: it leaves alone the running statistics, which `forward` has updated."""
        y = x.to(self.conv.weight.dtype)  # penalties are computed outside autocast, of features that may be bfloat16
        if self.training:
            y = self.conv(y[:, :, ::2, ::2])
            y = F.batch_norm(y, None, None, self.bn.weight, self.bn.bias, True, 0.0, self.bn.eps)
        else:
            y = self(y)
        return y.to(x.dtype)


class Block(nn.Module):
    """relu(shortcut(x) + bn2(conv2(relu(bn1(conv1(x))))))."""

    def __init__(self, earlier: int, inner: int, later: int, stride: int, shortcut: nn.Module):
        super().__init__()
        self.conv1 = nn.Conv2d(earlier, inner, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, later, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(later)
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Before and after the first ReLU, before and after the second."""
        first = self.bn1(self.conv1(x))
        middle = F.relu(first)
        last = self.bn2(self.conv2(middle)) + self.shortcut(x)
        return first, middle, last, F.relu(last)


class ResNet(Net):
    """A residual net of the shape that `layout` and `plan` give."""

    taps = (*Net.taps, "block_output")
    default_tap = "block_output"

    def __init__(self, layout: Layout, plan: ResNetPlan):
        super().__init__()
        size, *rest = layout.widths
        pairs = iter(zip(rest[::2], rest[1::2]))
        maps = layout.maps or (None,) * (len(plan.depths) - 1)
        require(len(maps) == len(plan.depths) - 1, "number of maps", len(maps), f"{len(plan.depths) - 1}")
        kernel, stride = (7, 2) if plan.big_stem else (3, 1)
        self.layout, self.big_stem = layout, plan.big_stem
        self.conv1 = nn.Conv2d(3, size, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(size)
        self.stages = [f"layer{s}" for s in range(1, len(plan.depths) + 1)]
        for s, (stage, depth) in enumerate(zip(self.stages, plan.depths)):
            blocks = []
            for k in range(depth):
                inner, later = next(pairs)
                changes, shortcut = s > 0 and k == 0, nn.Identity()
                if changes and layout.shortcut == "A":
                    shortcut = PadShortcut(size, later, maps[s - 1])
                elif changes:
                    shortcut = Projection(size, later)
                require(changes or later == size, f"width of {stage}.{k}.conv2", later, f"{size}, that of its stage")
                blocks.append(Block(size, inner, later, 2 if changes else 1, shortcut))
                size = later
            self.add_module(stage, nn.ModuleList(blocks))
        self.linear = nn.Linear(size, layout.num_classes)
        initialise(self, plan.init)

    def blocks(self) -> list[Block]:
        return [block for stage in self.stages for block in getattr(self, stage)]

    def _run(self, x: torch.Tensor, tap: str | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        before = self.bn1(self.conv1(x))
        x = F.relu(before)  # out of place: `before` may be a feature
        features = [before if tap == "pre_activation" else x] if tap else []
        if self.big_stem:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
            features = [x] if tap == "block_output" else features
        for block in self.blocks():
            first, middle, last, x = block(x)
            if tap:
                features += {"pre_activation": [first, last], "post_activation": [middle, x], "block_output": [x]}[tap]
        return self.linear(x.mean((2, 3))), features

    def shortcuts(self, tap: str | None = None) -> list[Callable | None]:
        """For each of the L - 1 steps of `flow`: the shortcut of the block that changes the shape there, else None.

        Between ReLU outputs (or inputs) the shape changes inside that block; its shortcut fits there as long as the
        inner width equals the stage's, so a net with cut inner channels has None. None also at a big stem's pool.
        """
        tap, steps = self.tap_name(tap), []
        for block in self.blocks():
            step = None if isinstance(block.shortcut, nn.Identity) else getattr(block.shortcut, "carry", block.shortcut)
            fits = block.conv1.out_channels == block.conv2.out_channels
            steps += [step] if tap == "block_output" else [step if fits else None, None]
        return steps

    def groups(self) -> list[ChannelGroup]:
        """A "stream" group a stage ("stage1", ...), each followed by the "inner" groups of its blocks."""
        groups, projected = [], self.layout.shortcut != "A"

        def group(name: str, writers: list[str], readers: list[str], kind: str) -> ChannelGroup:
            size = self.get_submodule(writers[0]).out_channels
            norms = tuple(writer.replace("conv", "bn") for writer in writers)
            return ChannelGroup(name, size, tuple(writers), norms, tuple(readers), kind)

        for s, stage in enumerate(self.stages, 1):
            blocks, following = [f"{stage}.{k}" for k in range(len(getattr(self, stage)))], f"layer{s + 1}.0"
            first = ["conv1"] if s == 1 else [f"{stage}.0.shortcut.conv"] * projected
            last = [f"{following}.conv1"] + [f"{following}.shortcut.conv"] * projected
            readers = [f"{block}.conv1" for block in blocks[s > 1 :]] + (last if s < len(self.stages) else ["linear"])
            groups.append(group(f"stage{s}", first + [f"{block}.conv2" for block in blocks], readers, "stream"))
            groups += [group(f"{block}.conv1", [f"{block}.conv1"], [f"{block}.conv2"], "inner") for block in blocks]
        return groups
