"""Training: one step as a fixed program over tensors that stay on the device.

Images live on the device as uint8. A run draws its order, crops and flips for a whole epoch at once from its own
generator, uploads them as tables, and a counter on the device walks through them: a step therefore needs nothing from
Python, and a GPU can replay it. All that can change a number is here; when runs advance is decided in `together`.
"""

from __future__ import annotations

import functools
import hashlib
import os
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ffrlib import data, models
from ffrlib.data import ImageSet
from ffrlib.models.layers import Dropout
from ffrlib.regularizers import flow, proximal, weight
from ffrlib.spec import Recipe, RunSpec, require


def stream_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose ("init", "order", "dropout", ...) of a run, so that no two purposes share draws."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:7], "big")


def fast_bfloat16() -> bool:
    """True where this CPU multiplies bfloat16 faster than float32: with matrix units (amx_bf16), or an AMD one with
    avx512_bf16. An Intel one without matrix units, or with them hidden, takes twice as long as in float32."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "amx_bf16" in text or ("avx512_bf16" in text and "AuthenticAMD" in text)


def precision(spec: RunSpec, device: torch.device | str) -> torch.dtype:
    """The dtype of the forward pass. "auto": bfloat16 on a GPU or on a CPU that multiplies it in hardware; the digits
    always in float32, since nets that small wait for calls, not for arithmetic."""
    if spec.recipe.precision != "auto":
        return getattr(torch, spec.recipe.precision)
    fast = spec.data != "digits" and (torch.device(device).type == "cuda" or fast_bfloat16())
    return torch.bfloat16 if fast else torch.float32


def deterministic() -> None:
    """From here on equal runs on one GPU are bitwise equal (on a CPU they always are). Call it before the first use."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False


def learning_rates(recipe: Recipe, steps: int) -> np.ndarray:
    """The learning rate of each of `steps` steps, shape (steps,), float64."""
    t = np.arange(steps) / max(steps, 1)
    if recipe.schedule == "cosine":
        return recipe.lr * 0.5 * (1 + np.cos(np.pi * t))
    if recipe.schedule == "one_cycle":
        return recipe.lr * np.interp(t, [0, 0.25, 1], [0.1, 1, 0.001])
    if recipe.schedule == "step":
        return recipe.lr * recipe.gamma ** np.searchsorted(np.sort(recipe.milestones), t, side="right")
    return recipe.lr * np.ones(steps)


def new_model(spec: RunSpec, num_classes: int) -> torch.nn.Module:
    """The net of `spec` as published, drawn from the run's seed; torch's default generator is left alone."""
    shortcut = spec.shortcut or None
    widths = None if spec.width == 1 else models.scaled_widths(spec.model, spec.width, shortcut)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(spec.seed, "init"))
        return models.build(spec.model, num_classes=num_classes, shortcut=shortcut, widths=widths)


def flow_of(model: torch.nn.Module, x: torch.Tensor, tap: str | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits and the features at `tap` (none where it is None)."""
    return model.flow(x, tap) if tap else (model(x), [])


@functools.cache
def compiled_flow():
    """`flow_of` through torch.compile: one compilation serves all runs of a shape."""
    return torch.compile(flow_of, dynamic=False)


class Trainer:
    """One run in progress.

    `model`: continue with this net, in place, instead of a new one that is drawn from the seed. `masks`: {parameter
    name: 0/1 tensor}; where 0, weights stay zero. `observe(model) -> {name: float}` is asked after about ten evenly
    spaced epochs and after the last. `compiled`: the forward pass goes through torch.compile.
    """

    def __init__(self, spec: RunSpec, images: ImageSet, device="cpu", model=None, masks=None, observe=None,
                 compiled=False):  # fmt: skip
        self.spec, self.images, self.observe, self.compiled = spec, images, observe, compiled
        self.device, self.dtype = torch.device(device), precision(spec, device)
        self.real = torch.promote_types(self.dtype, torch.float32)  # what weights, losses and sums are kept in
        real, whole = ({"dtype": dtype, "device": self.device} for dtype in (self.real, torch.int64))
        self.model = new_model(spec, images.num_classes) if model is None else model
        self.model.to(self.device, self.real, memory_format=torch.channels_last)
        r, f, a = spec.recipe, spec.flow, spec.activation
        tap = f.tap if f.length or f.curvature else a.tap if a.strength else None  # None: no penalty reads features
        if tap:
            able = "one with `default_tap` and `flow(x, tap)` for a penalty on features (docs/own.md)"
            require(hasattr(self.model, "default_tap"), "the net", type(self.model).__name__, able)
        self.tap = self.model.default_tap if tap == "default" else tap
        self.batch = min(r.batch_size, len(images.train[1]))
        self.steps = len(images.train[1]) // self.batch  # the last, smaller batch is left out: every step has one shape
        self.rates = learning_rates(r, self.steps * r.epochs)
        self.epoch, self.seconds, self.failure, self.graph = 0, 0.0, None, None
        self.curve: dict = {"loss": [], "penalty": []}
        self.dropout_generator = torch.Generator(self.device)
        self.dropouts = [m for m in self.model.modules() if isinstance(m, Dropout)]
        self.masks = {name: mask.to(**real) for name, mask in (masks or {}).items()}
        self.parameters = list(self.model.parameters())
        # The fused optimiser reads a learning rate on a GPU as float32, whatever the weights are.
        self.rate = torch.zeros((), dtype=self.real if self.device.type == "cpu" else torch.float32, device=self.device)
        self.optimiser = torch.optim.SGD(self.parameters, self.rate, r.momentum, weight_decay=r.weight_decay,
                                         nesterov=r.nesterov and r.momentum > 0, fused=True)  # fmt: skip
        # Fixed addresses that a captured step reads and writes. Momentum from zero is where the optimiser would start.
        self.momentum = [torch.zeros_like(p) for p in self.parameters] if r.momentum else []
        for parameter, buffer in zip(self.parameters, self.momentum):
            self.optimiser.state[parameter]["momentum_buffer"] = buffer
        self.at, self.window = torch.zeros(1, **whole), torch.arange(self.batch, **whole)
        self.epoch_rates = torch.zeros(self.steps, **real)
        self.tables = {name: torch.zeros_like(table, device=self.device) for name, table in self.draw().items()}
        self.sums = torch.zeros(2, **real)  # cross-entropy and penalty over the epoch
        self.first_bad = torch.full((1,), -1, **whole)

    @property
    def finished(self) -> bool:
        return self.failure is not None or self.epoch >= self.spec.recipe.epochs

    # -- one step: nothing in here may ask the device for a value ------------------------------------------------------
    def penalties(self, features: list[torch.Tensor]) -> torch.Tensor:
        """The sum of the three bundles of penalties for one batch (scalar). `features` is empty where `tap` is None,
        as for a spec without a penalty on features."""
        w, f, a = self.spec.weight, self.spec.flow, self.spec.activation
        total = torch.zeros((), device=self.device, dtype=self.real)
        if w.name != "none" and w.update == "subgradient":
            total = total + weight.weight_penalty(self.model, w.name, w.strength, w.grouping, w.mix, w.second,
                                                  w.include_linear)  # fmt: skip
        if f.length or f.curvature:
            ways = self.model.shortcuts(self.tap) if f.transition == "shortcut" else None
            total = total + flow.flow_penalty(features, f.length, f.curvature, f.norm, f.curvature_kind, f.reduction,
                                              f.transition, shortcuts=ways)  # fmt: skip
        if a.strength:
            total = total + a.strength * flow.activation_penalty(features)
        return total

    def step(self) -> None:
        rows = self.at * self.batch + self.window
        drawn = {name: table.index_select(0, rows) for name, table in self.tables.items()}
        x = self.images.train[0].index_select(0, drawn["order"])
        y = self.images.train[1].index_select(0, drawn["order"])
        if "flip" in drawn:
            x = data.crop_and_flip(x, drawn["dy"], drawn["dx"], drawn["flip"])
        x = data.normalise(x, self.images.mean, self.images.std, self.real)
        self.rate.copy_(self.epoch_rates.index_select(0, self.at)[0])
        self.optimiser.zero_grad(set_to_none=True)
        low = self.dtype == torch.bfloat16
        with torch.autocast(self.device.type, dtype=torch.bfloat16) if low else nullcontext():
            logits, features = (compiled_flow() if self.compiled else flow_of)(self.model, x, self.tap)
        loss = F.cross_entropy(logits.to(self.real), y)
        penalty = self.penalties(features)
        total = loss + penalty
        total.backward()
        self.optimiser.step()
        w = self.spec.weight
        with torch.no_grad():
            if w.update == "proximal" and w.name != "none":
                # The subgradient path with momentum moves about 1 / (1 - momentum) as far: the same reach here.
                threshold = self.rate * (w.strength / (1 - self.spec.recipe.momentum))
                proximal.step_(self.model, w.name, threshold, w.grouping, w.mix, w.second, w.include_linear)
            for name, mask in self.masks.items():
                self.model.get_parameter(name).mul_(mask)
            self.sums.add_(torch.stack([loss.detach(), penalty.detach()]))
            bad = ~torch.isfinite(total.detach()) & (self.first_bad < 0)
            self.first_bad.copy_(torch.where(bad, self.at, self.first_bad))
            self.at.add_(1)

    # -- epochs --------------------------------------------------------------------------------------------------------
    def draw(self) -> dict[str, torch.Tensor]:
        """This epoch's order, crops and flips, each of shape (steps * batch,)."""
        generator = torch.Generator().manual_seed(stream_seed(self.spec.seed, f"order {self.epoch}"))
        n, count = len(self.images.train[1]), self.steps * self.batch
        drawn = {"order": torch.randperm(n, generator=generator)[:count]}
        if self.spec.recipe.augment == "crop_flip":
            drawn |= {name: torch.randint(9, (count,), generator=generator) for name in ("dy", "dx")}
            drawn["flip"] = torch.randint(2, (count,), generator=generator).bool()
        return drawn

    def begin_epoch(self) -> None:
        """Uploads this epoch's tables and learning rates, and puts the counters back."""
        self.model.train()
        self.dropout_generator.manual_seed(stream_seed(self.spec.seed, f"dropout {self.epoch}"))
        for module in self.dropouts:
            module.generator = self.dropout_generator
        for name, drawn in self.draw().items():
            self.tables[name].copy_(drawn)
        rates = self.rates[self.epoch * self.steps : (self.epoch + 1) * self.steps]
        self.epoch_rates.copy_(torch.from_numpy(rates))
        self.at.zero_()
        self.sums.zero_()
        self.first_bad.fill_(-1)

    def end_epoch(self) -> None:
        """Reads the epoch's sums (the one synchronisation), extends the curve, notices a loss that is not finite."""
        self.epoch += 1
        loss, penalty = (self.sums / max(self.steps, 1)).tolist()
        bad = int(self.first_bad)
        if bad < 0 and self.finished and not all(p.isfinite().all() for p in self.parameters):
            bad = self.steps - 1  # the last step's update, which no loss has seen
        self.model.eval()
        for module in self.dropouts:
            module.generator = None
        if bad >= 0:
            w, f, a = self.spec.weight, self.spec.flow, self.spec.activation
            given = {"weight": w.strength, "length": f.length, "curvature": f.curvature, "activation": a.strength}
            strengths = {name: strength for name, strength in given.items() if strength}
            self.failure = {"epoch": self.epoch, "step": bad + 1, "strength": strengths}
            return
        self.curve["loss"].append(round(loss, 5))
        self.curve["penalty"].append(float(f"{penalty:.5g}"))
        every = max(1, self.spec.recipe.epochs // 10)
        if self.observe and (self.epoch % every == 0 or self.finished):
            self.curve.setdefault("observed_epoch", []).append(self.epoch)
            for name, value in self.observe(self.model).items():
                self.curve.setdefault(name, []).append(value)

    def advance(self) -> None:
        """One step, captured or not."""
        self.graph.replay() if self.graph else self.step()
