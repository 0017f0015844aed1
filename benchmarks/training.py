"""How fast training is, as ratios to a plain loop that a user would write, measured side by side in one run.

    python benchmarks/training.py                    two-core CPU cases, under five minutes
    python benchmarks/training.py --device cuda      GPU cases, two minutes (--gpu-minutes)
    python benchmarks/training.py --accuracy         five paired seeds: does the fast path learn as well?

Three paths do the same work (batch 128, crop and flip, SGD with momentum): "plain" is torchvision's transforms and a
DataLoader with two workers, float32, eager; "on device" the same eager float32 loop with the data on the device; "ours"
is ffrlib.training. Each figure is the median of interleaved repeats, so that a disturbance hits all paths alike.
Writes results/benchmarks/training-<cpu-KIND|cuda>.json and .md, KIND being the vector instructions of the CPU, or
"amx" where it multiplies bfloat16 by matrix units.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torchvision import transforms

from ffrlib import data, measure, store
from ffrlib.files import results_folder, write_atomically
from ffrlib.spec import Recipe, RunSpec
from ffrlib.together import capture, synchronise, train_together
from ffrlib.training import Trainer, deterministic, learning_rates, new_model, precision

BATCH, IMAGES = 128, 45_000  # of CIFAR-10 without the validation images: an epoch has 351 steps
NETS = {"resnet20": "A", "resnet56": "A", "vgg16": "", "alexnet_small": ""}
TARGETS = {  # case -> (what, at least or at most, figure)
    "cpu resnet20": ("times plain", ">=", 2.5), "cpu vgg16": ("times plain", ">=", 2.5),
    "cpu alexnet_small": ("times plain", ">=", 2.0),
    "cpu sweep of eight alexnet_small": ("times one after the other", ">=", 1.25),
    "cuda resnet20": ("times plain", ">=", 8), "cuda vgg16": ("times plain", ">=", 4),
    "cuda epoch of resnet20": ("seconds", "<=", 1.0), "cuda epoch of resnet56": ("seconds", "<=", 2.5),
    "cuda epoch of vgg16": ("seconds", "<=", 1.0),
    "cuda eight resnet20 together": ("times one after the other", ">=", 3),
}  # fmt: skip
PARTS = (  # (what an operation counts as, words of its name); the first that fits
    ("convolutions", ("convolution",)), ("batch norm", ("batch_norm",)), ("ReLU", ("relu", "threshold", "clamp")),
    ("linear layers", ("mm", "linear")), ("pooling", ("pool",)), ("update of the weights", ("sgd", "foreach")),
    ("drawing, cropping, normalising", ("index", "gather", "where", "copy", "div", "sub", "arange", "remainder")),
    ("additions", ("add",)),
)  # fmt: skip


def spec_of(net: str, **recipe) -> RunSpec:
    settings = {"epochs": 100, "batch_size": BATCH, "augment": "crop_flip"} | recipe
    return RunSpec("cifar10", net, NETS[net], recipe=Recipe(**settings))


@functools.cache
def images(count: int, device: str) -> data.ImageSet:
    """CIFAR-10, or random images of its shape where it is not there: speed does not depend on what they show."""
    try:
        return data.load("cifar10", train_size=count, device=device)
    except FileNotFoundError:
        random = np.random.default_rng(0)

        def part(n):
            pixels, labels = random.integers(256, size=(n, 3, 32, 32), dtype=np.uint8), random.integers(10, size=n)
            return torch.from_numpy(pixels).to(device), torch.from_numpy(labels).to(device)

        mean, std = torch.full((3,), 0.47, device=device), torch.full((3,), 0.25, device=device)
        return data.ImageSet("cifar10", 10, part(count), part(100), part(100), mean, std, "random")


# -- the three paths: each a generator whose next() does one step ------------------------------------------------------
class Pictures(torch.utils.data.Dataset):
    """The images as a user's data set hands them out: one at a time, through torchvision's transforms."""

    def __init__(self, image_set: data.ImageSet):
        self.pixels = image_set.train[0].cpu().numpy().transpose(0, 2, 3, 1)
        self.labels = image_set.train[1].cpu().tolist()
        normalise = transforms.Normalize(image_set.mean.tolist(), image_set.std.tolist())
        self.change = transforms.Compose(
            [transforms.ToPILImage(), transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(),
             transforms.ToTensor(), normalise]
        )  # fmt: skip

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.change(self.pixels[i]), self.labels[i]


def eager_step(model, optimiser, x, y) -> float:
    loss = F.cross_entropy(model(x), y)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.item()


def plain_parts(spec: RunSpec, device: str):
    model = new_model(spec, 10).to(device).train()
    r = spec.recipe
    return model, torch.optim.SGD(model.parameters(), r.lr, r.momentum, weight_decay=r.weight_decay)


def plain(spec: RunSpec, image_set: data.ImageSet, device: str):
    model, optimiser = plain_parts(spec, device)
    rates = iter(learning_rates(spec.recipe, len(image_set.train[1]) // BATCH * spec.recipe.epochs))
    loader = torch.utils.data.DataLoader(
        Pictures(image_set), BATCH, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True
    )
    while True:
        for x, y in loader:
            optimiser.param_groups[0]["lr"] = next(rates, 0.0)
            yield eager_step(model, optimiser, x.to(device), y.to(device)), model


def on_device(spec: RunSpec, image_set: data.ImageSet, device: str):
    model, optimiser = plain_parts(spec, device)
    pixels, labels = image_set.train
    while True:
        for chosen in torch.randperm(len(labels), device=device).split(BATCH):
            dy, dx = torch.randint(9, (2, len(chosen)), device=device)
            x = data.crop_and_flip(pixels[chosen], dy, dx, torch.rand(len(chosen), device=device) < 0.5)
            x = data.normalise(x, image_set.mean, image_set.std).contiguous()
            yield eager_step(model, optimiser, x, labels[chosen]), model


def ours(spec: RunSpec, image_set: data.ImageSet, device: str, **options):
    trainer = Trainer(spec, image_set, device, **options)
    if device == "cuda":
        capture(trainer)
    while True:
        trainer.begin_epoch()
        for _ in range(trainer.steps):
            trainer.advance()
            yield None, trainer.model
        trainer.epoch += 1


PATHS = {"plain": plain, "on device": on_device, "ours": ours}
COMPILING = {"ours": ours, "ours, compiled": functools.partial(ours, compiled=True)}


def seconds_a_step(path, steps: int, device: str) -> float:
    synchronise(torch.device(device))
    start = time.perf_counter()
    for _ in range(steps):
        next(path)
    synchronise(torch.device(device))
    return (time.perf_counter() - start) / steps


def of_a_step(net: str, steps: int = 3) -> dict:
    """What our steps spend their time on, on a CPU: {part: percent}, largest first, by torch's profiler."""
    trainer = Trainer(spec_of(net), images(5000, "cpu"))
    trainer.begin_epoch()
    trainer.advance()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        for _ in range(steps):
            trainer.advance()
    found = Counter()
    for event in seen.key_averages():
        part = (part for part, words in PARTS if any(word in event.key for word in words))
        found[next(part, "the rest")] += event.self_cpu_time_total
    return {part: round(100 * took / found.total()) for part, took in found.most_common()}


def from_nothing(net: str) -> float:
    """Seconds from the start of a process of its own to the end of the first step: imports, images, net, step."""
    start = time.perf_counter()
    subprocess.run([sys.executable, __file__, "--first-step", net], check=True)
    return round(time.perf_counter() - start, 2)


def compare(net: str, device: str, steps: int, repeats: int, count: int = 5000, paths=PATHS) -> dict:
    """Images a second of each path, medians of interleaved repeats; seconds until each had done its first step."""
    spec, found = spec_of(net), {}
    image_set = images(count, device)
    running, starts, memory = {}, {}, {}
    for name, path in paths.items():
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        start = time.perf_counter()
        running[name] = path(spec, image_set, device)
        next(running[name])
        synchronise(torch.device(device))
        starts[name] = round(time.perf_counter() - start, 2)
        for _ in range(5 if name == "plain" else 2):  # the loader's queue is emptied, too
            next(running[name])
        if device == "cuda":
            memory[name] = round((torch.cuda.max_memory_allocated() - before) / 2**20)
    times = {name: [] for name in running}
    for _ in range(repeats):
        for name, path in running.items():
            times[name].append(seconds_a_step(path, steps, device))
    speed = {name: BATCH / statistics.median(t) for name, t in times.items()}
    found["images_per_second"] = {name: round(v, 1) for name, v in speed.items()}
    found |= {f"times {name}": round(speed["ours"] / v, 2) for name, v in speed.items() if name != "ours"}
    found["seconds_to_first_step"] = starts
    found["spread_percent"] = {n: round(100 * (max(t) - min(t)) / statistics.median(t)) for n, t in times.items()}
    if memory:
        found["peak_mib"] = memory
    model = new_model(spec, 10)
    found["gflops"] = round(6 * measure.macs(model, (3, 32, 32)) * speed["ours"] / 1e9)  # forward 1, backward 2
    return found


# -- CPU ---------------------------------------------------------------------------------------------------------------
def bare_convolution(device: str, dtype: torch.dtype) -> float:
    """GFLOP/s of a 3x3 convolution of 256 channels alone, forward: what this machine could do at best."""
    x = torch.randn(64, 256, 16, 16, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    w = torch.randn(256, 256, 3, 3, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    best, where = float("inf"), torch.device(device)
    for _ in range(10):
        synchronise(where)
        start = time.perf_counter()
        F.conv2d(x, w, padding=1)
        synchronise(where)
        best = min(best, time.perf_counter() - start)
    return round(2 * 64 * 256 * 256 * 9 * 16 * 16 / best / 1e9)


def sweep_run(seed: int, steps: int, threads: int) -> None:
    """One run of the sweep, from its seed: what a worker of ffrlib.run does."""
    torch.set_num_threads(threads)
    trainer = Trainer(replace(spec_of("alexnet_small"), seed=seed), images(5000, "cpu"))
    trainer.begin_epoch()
    for _ in range(steps):
        trainer.advance()


def sweep(cores: int, steps: int, repeats: int) -> dict:
    """Eight runs of AlexNet-small: as single-threaded workers, one a core, and one after the other with all cores; and
    one such worker with the machine to itself, of which as many as there are cores would be the limit."""
    together, alone, single = [], [], []
    with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
        list(pool.map(sweep_run, range(2 * cores), [2] * 2 * cores, [1] * 2 * cores))  # imports and first calls
        for _ in range(repeats):
            start = time.perf_counter()
            list(pool.map(sweep_run, range(8), [steps] * 8, [1] * 8))
            together.append(time.perf_counter() - start)
            start = time.perf_counter()
            for seed in range(8):
                sweep_run(seed, steps, cores)
            alone.append(time.perf_counter() - start)
            start = time.perf_counter()
            pool.submit(sweep_run, 0, steps, 1).result()
            single.append(8 * (time.perf_counter() - start))
    torch.set_num_threads(cores)
    speed = [8 * steps * BATCH / statistics.median(t) for t in (together, alone, single)]
    return {
        "images_per_second": {"workers": round(speed[0]), "one after the other": round(speed[1])},
        "times one after the other": round(speed[0] / speed[1], 2),
        "percent of its limit": round(100 * speed[0] / (cores * speed[2])),
    }


def resident(kind: str) -> float:
    """MiB of this process's memory: "VmRSS" now, "VmHWM" at its peak. Linux alone says."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if kind in line) / 1024


def loaders() -> float:
    """MiB that the worker processes of this process have to themselves. Linux alone says."""
    total = 0
    for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        lines = Path(f"/proc/{child}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return total / 1024


def peak_of(name: str, net: str, threads: int) -> float | None:
    """MiB by which a process's resident memory rises at its peak with one path: net, optimiser, 1,000 images, three
    steps; of the plain path with its loader's two workers at the end. None where that cannot be read."""
    torch.set_num_threads(threads)
    path = PATHS[name](spec_of(net), images(1000, "cpu"), "cpu")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far, that of the imports, is forgotten
        before = resident("VmRSS")
    except OSError:
        return None
    for _ in range(3):
        next(path)
    return round(resident("VmHWM") - before + loaders())


def cpu_cases(cores: int) -> dict:
    torch.set_num_threads(cores)
    cases = {}
    for net, steps, repeats in (("resnet20", 3, 5), ("vgg16", 1, 4), ("alexnet_small", 20, 5)):
        cases[f"cpu {net}"] = compare(net, "cpu", steps, repeats)
        with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
            cases[f"cpu {net}"]["peak_mib"] = {name: pool.submit(peak_of, name, net, cores).result() for name in PATHS}
        cases[f"cpu {net}"]["percent_of_a_step"] = of_a_step(net)
        cases[f"cpu {net}"]["seconds_to_first_step"]["a process of its own"] = from_nothing(net)
        print(f"cpu {net}", cases[f"cpu {net}"], flush=True)
    cases["cpu sweep of eight alexnet_small"] = sweep(cores, 20, 3)
    torch.set_num_threads(cores)
    cases["cpu bare convolution"] = {
        "gflops": {str(t).removeprefix("torch."): bare_convolution("cpu", t) for t in (torch.float32, torch.bfloat16)}
    }
    return cases


# -- GPU ---------------------------------------------------------------------------------------------------------------
def stacked(spec: RunSpec, image_set: data.ImageSet, count: int):
    """The measured alternative to streams: `count` nets as one with torch.func, vmap over the nets, one captured step.

    Without augmentation and orders of their own, and with plain SGD with momentum: it flatters the alternative.
    """
    from torch.func import functional_call, grad_and_value, stack_module_state, vmap

    nets = [new_model(replace(spec, seed=k), 10).cuda().train() for k in range(count)]
    weights, buffers = stack_module_state(nets)
    skeleton, low = nets[0], precision(spec, "cuda") == torch.bfloat16

    def loss_of(w, b, x, y):
        with torch.autocast("cuda", torch.bfloat16, enabled=low):
            return F.cross_entropy(functional_call(skeleton, (w, b), (x,)).float(), y)

    step_all = vmap(grad_and_value(loss_of), in_dims=(0, 0, 0, 0), randomness="different")
    weights = {name: w.detach().clone() for name, w in weights.items()}
    momenta = [torch.zeros_like(w) for w in weights.values()]
    pixels, labels = (part[: count * BATCH] for part in image_set.train)
    x = data.normalise(pixels, image_set.mean, image_set.std).view(count, BATCH, 3, 32, 32)
    y = labels.view(count, BATCH)

    def step():
        gradients, _ = step_all(weights, buffers, x, y)
        flat = [gradients[name] for name in weights]
        torch._foreach_add_(flat, list(weights.values()), alpha=spec.recipe.weight_decay)
        torch._foreach_mul_(momenta, spec.recipe.momentum)
        torch._foreach_add_(momenta, flat)
        torch._foreach_add_(list(weights.values()), momenta, alpha=-spec.recipe.lr)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(3):
            step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream), torch.no_grad():
        step()
    while True:
        graph.replay()
        yield None, skeleton


def side_by_side(net: str, count: int, steps: int, repeats: int) -> dict:
    """`count` runs on streams of their own, one after the other, and stacked by vmap: images a second of all."""
    image_set, times = images(5000, "cuda"), {"streams": [], "one after the other": []}
    torch.cuda.reset_peak_memory_stats()
    trainers = [Trainer(replace(spec_of(net), seed=k), image_set, "cuda") for k in range(count)]
    for trainer in trainers:
        capture(trainer)
        trainer.begin_epoch()
    steps = min(steps, trainers[0].steps)

    def run(order) -> float:
        for trainer in trainers:
            trainer.at.zero_()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for trainer in order:
            with torch.cuda.stream(trainer.stream):
                trainer.advance()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    for _ in range(repeats + 1):
        times["streams"].append(run([t for _ in range(steps) for t in trainers]))
        times["one after the other"].append(0.0)
        for trainer in trainers:
            times["one after the other"][-1] += run([trainer] * steps)
    found = {"peak_mib": {"streams": round(torch.cuda.max_memory_allocated() / 2**20)}}
    speed = {name: count * steps * BATCH / statistics.median(t[1:]) for name, t in times.items()}
    trainers.clear()
    torch.cuda.empty_cache()
    try:
        torch.cuda.reset_peak_memory_stats()
        path = stacked(spec_of(net), image_set, count)
        next(path)
        speed["stacked by vmap"] = (
            count * BATCH / statistics.median(seconds_a_step(path, steps, "cuda") for _ in range(repeats))
        )
        found["peak_mib"]["stacked by vmap"] = round(torch.cuda.max_memory_allocated() / 2**20)
    except Exception as error:  # whatever torch.func cannot do is the finding
        found["stacked by vmap"] = f"failed: {str(error).splitlines()[0][:200]}"
    found["images_per_second"] = {name: round(v) for name, v in speed.items()}
    found["times one after the other"] = round(speed["streams"] / speed["one after the other"], 2)
    return found


def repeated(net: str, steps: int) -> dict:
    """Seconds a step, and how far two equal runs are apart after `steps` steps (largest difference of a weight)."""
    ends, took = [], []
    for _ in range(2):
        path = ours(spec_of(net), images(5000, "cuda"), "cuda")
        next(path)
        took.append(seconds_a_step(path, steps, "cuda"))
        ends.append([p.detach().clone() for p in next(path)[1].parameters()])
    apart = max(float((a - b).abs().max()) for a, b in zip(*ends))
    return {"seconds_a_step": min(took), "largest_difference_of_a_weight": apart}


def gpu_cases(minutes: float) -> dict:
    """The GPU cases in the order of what they decide; those that the time does not allow are named as left out."""
    begun, cases = time.monotonic(), {}

    def epoch(net: str) -> dict:
        return {"seconds": round(IMAGES / cases[f"cuda {net}"]["images_per_second"]["ours"], 3)}

    def deterministic_mode() -> dict:
        free = repeated("resnet20", 100)
        deterministic()
        fixed = repeated("resnet20", 100)
        torch.use_deterministic_algorithms(False)
        cost = fixed["seconds_a_step"] / free["seconds_a_step"]
        return {"free": free, "deterministic": fixed, "times the free mode's time": round(cost, 3)}

    todo = {
        "cuda resnet20": lambda: compare("resnet20", "cuda", 30, 3),
        "cuda epoch of resnet20": lambda: epoch("resnet20"),
        "cuda eight resnet20 together": lambda: side_by_side("resnet20", 8, 30, 3),
        "cuda vgg16": lambda: compare("vgg16", "cuda", 30, 3),
        "cuda epoch of vgg16": lambda: epoch("vgg16"),
        "cuda resnet56": lambda: compare("resnet56", "cuda", 20, 3),
        "cuda epoch of resnet56": lambda: epoch("resnet56"),
        "cuda deterministic mode": deterministic_mode,
        "cuda bare convolution": lambda: {"gflops": {"bfloat16": bare_convolution("cuda", torch.bfloat16)}},
        "cuda vgg16 compiled": lambda: compare("vgg16", "cuda", 30, 3, paths=COMPILING),
    }
    for name, case in todo.items():
        if time.monotonic() - begun > 60 * minutes * 0.85:
            cases[name] = {"left out": "no time"}
            continue
        try:
            cases[name] = case()
        except Exception as error:  # the other cases are worth having
            cases[name] = {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}
        torch.cuda.empty_cache()
        print(f"{time.monotonic() - begun:6.1f} s  {name} {cases[name]}", flush=True)
    return cases


# -- does the fast path learn as well? ---------------------------------------------------------------------------------
def accuracy_case(device: str, seeds: int = 5) -> dict:
    """Paired seeds, test accuracy after the same recipe, ours minus plain: 95 % interval of the mean."""
    from scipy import stats

    net, count, epochs = ("resnet20", 20000, 15) if device == "cuda" else ("alexnet_small", 10000, 10)
    image_set, rows = images(count, device), []
    for seed in range(seeds):
        spec = replace(spec_of(net, epochs=epochs, schedule="one_cycle", lr=0.1), seed=seed)
        torch.manual_seed(1000 + seed)
        path = plain(spec, image_set, device)
        for _ in range(count // BATCH * epochs):
            _, model = next(path)
        fast = train_together([Trainer(spec, image_set, device)])[0].model
        test = functools.partial(measure.accuracy, images=image_set.test[0], labels=image_set.test[1],
                                 mean=image_set.mean, std=image_set.std)  # fmt: skip
        rows.append((test(model.eval())[0], test(fast)[0]))
        print(f"seed {seed}: plain {rows[-1][0]:.2f}, ours {rows[-1][1]:.2f}", flush=True)
    difference = np.array([ours - reference for reference, ours in rows])
    half = stats.t.ppf(0.975, seeds - 1) * difference.std(ddof=1) / seeds**0.5
    low, high = difference.mean() - half, difference.mean() + half
    return {
        "net": net, "images": count, "epochs": epochs, "data": image_set.digest, "test_accuracy": rows,
        "mean_difference": round(difference.mean(), 3), "interval_95": [round(low, 3), round(high, 3)],
        "within_one_point": bool(low > -1 and high < 1),
    }  # fmt: skip


# -- report ------------------------------------------------------------------------------------------------------------
def verdict(name: str, case: dict) -> str:
    if "within_one_point" in case:
        good = "met" if case["within_one_point"] else "missed"
        return f"95 % interval {case['interval_95']} within one point: {good}"
    if name not in TARGETS:
        return ""
    what, sign, figure = TARGETS[name]
    if what not in case:
        return "not measured"
    good = case[what] >= figure if sign == ">=" else case[what] <= figure
    return f"{case[what]} {what}, target {sign} {figure}: {'met' if good else 'missed'}"


def flags() -> str:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return ", ".join(f"{flag}: {'yes' if flag in info else 'no'}" for flag in ("avx512_bf16", "amx_bf16"))


def write(device: str, new: dict) -> None:
    """Adds the cases to what earlier calls on this device measured: a case measured again is replaced, but not by one
    that was left out or failed."""
    vectors = "amx" if "amx_bf16: yes" in flags() else torch.backends.cpu.get_cpu_capability().lower()
    kind = f"-{vectors}" if device == "cpu" else ""
    path = results_folder() / "benchmarks" / f"training-{device}{kind}.json"
    cases = json.loads(path.read_text())["cases"] if path.exists() else {}
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{store.cpu_type()}; {flags()}"
    head = {
        "machine": machine, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "load_average": round(os.getloadavg()[0], 1), "precision": str(precision(spec_of("vgg16"), device)),
    }  # fmt: skip
    unmade = {"left out", "failed"}  # these take no place of what was measured
    cases |= {name: case | head for name, case in new.items() if name not in cases or not unmade & set(case)}
    cases = {name: case | {"target": verdict(name, case)} for name, case in cases.items()}
    bare = cases.get(f"{device} bare convolution", {}).get("gflops", {})
    write_atomically(path, json.dumps({"cases": cases}, indent=1) + "\n")
    lines = [
        f"# Training speed on {device}", "",
        "Generated by benchmarks/training.py; ratios within one run. Speeds in images a second.", "",
        f"{machine}. {head['threads']} threads, torch {head['torch']}, ours in {head['precision']}.", "",
        "| case | plain | on device | ours | ours / plain | / on device | GFLOP/s | of a bare convolution "
        "| first step (s) | with imports (s) | MiB | target |", "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    others = ["", "| case | measured | target |", "|---|---|---|"]
    for name, case in cases.items():
        if "times plain" in case:
            peak = ", ".join(f"{path} {mib}" for path, mib in case.get("peak_mib", {}).items())
            cells = [name, *(f"{case['images_per_second'][path]:.0f}" for path in PATHS), case["times plain"]]
            best = bare.get(case["precision"].removeprefix("torch."))
            share = f"{100 * case['gflops'] / best:.0f} %" if best else ""
            starts = case["seconds_to_first_step"]
            cells += [case["times on device"], case["gflops"], share, starts["ours"]]
            cells += [starts.get("a process of its own", ""), peak]
            lines.append(f"| {' | '.join(map(str, cells))} | {case['target']} |")
        else:
            told = {k: v for k, v in case.items() if k not in (*head, "target", "test_accuracy")}
            others.append(f"| {name} | {json.dumps(told)[1:-1]} | {case['target']} |")
    limits = ["", "What our steps spend their time on, in percent (torch's profiler, all threads):", ""]
    for name, case in cases.items():
        parts = [f"{part} {share}" for part, share in case.get("percent_of_a_step", {}).items() if share]
        limits += [f"- {name}: {', '.join(parts)}"] if parts else []
    write_atomically(path.with_suffix(".md"), "\n".join(lines + others + limits) + "\n")
    print(f"written: {path} and .md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--cores", type=int, default=2, help="threads of the CPU cases")
    parser.add_argument("--gpu-minutes", type=float, default=2.0, help="limit of the GPU cases")
    parser.add_argument("--accuracy", action="store_true", help="five paired seeds instead of the speeds")
    parser.add_argument("--first-step", metavar="NET", help="do one step of a net and end: what a start takes")
    given = parser.parse_args()
    if given.first_step:
        next(ours(spec_of(given.first_step), images(5000, given.device), given.device))
        return
    if given.device == "cpu":
        torch.set_num_threads(given.cores)
    else:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for the deterministic case, before the first use
    if given.accuracy:
        cases = {f"{given.device} accuracy of the fast path": accuracy_case(given.device)}
    else:
        cases = gpu_cases(given.gpu_minutes) if given.device == "cuda" else cpu_cases(given.cores)
    write(given.device, cases)


if __name__ == "__main__":
    main()
