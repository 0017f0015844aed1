"""Image sets as uint8 tensors on the device, split into train, validation and test; batched preparation there.

Splits never depend on a run's seed. Choosing anything happens on validation, never on test.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ffrlib import fetch, spec

SPLIT_SEED = 20210  # of every split; a run's own seed is never used here
TINY_COUNTS = (200, 500, 50)  # classes, training and validation images in each


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A set on one device. Pairs are (images uint8 (N, C, H, W), labels int64 (N,)).

    `mean` and `std` are float32 (C,), of the training images that are used, in units of pixel value / 255, as
    `normalise` wants them; `value_range` is the largest pixel value (16 for the digits), for showing images.
    `digest` names the bytes and the split: two sets with one digest hold the same images in the same order.
    """

    name: str
    num_classes: int
    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    mean: Tensor
    std: Tensor
    digest: str
    value_range: int = 255


def load(name: str, train_size: int = 0, device="cpu", root: str | os.PathLike | None = None) -> ImageSet:
    """The set `name` (one of spec.DATA) on `device`.

    A tenth of the official training images, drawn evenly over the classes with a fixed seed, is the validation set
    (CIFAR: 5,000); of the rest the first `train_size` of a fixed order are used (0: all). Digits: 1,000 train, 297
    validation, 500 test. `root`: the only folder to look into; by default see `fetch`.
    Raises ValueError for an unknown name or a `train_size` that is too large, FileNotFoundError where a set is
    missing or damaged.
    """
    spec.choose("data", name, spec.DATA)
    read, num_classes, value_range = READERS[name]
    images, labels, test = read(root)
    order = even_order(labels)
    if name == "digits":
        held = order[:500]
        test, order = (images[held], labels[held]), order[500:]
    count = 297 if name == "digits" else len(order) // 10
    rest = order[count:]
    allowed = f"0 (all) to {len(rest)} for {name}"
    spec.require(isinstance(train_size, int) and 0 <= train_size <= len(rest), "train_size", train_size, allowed)
    rest = rest[: train_size or None]
    pairs = [(images[rest], labels[rest]), (images[order[:count]], labels[order[:count]]), test]
    mean, std = moments(pairs[0][0])
    pairs = [(np.ascontiguousarray(x), y.astype(np.int64)) for x, y in pairs]
    tensors = [(torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)) for x, y in pairs]
    digest = _digest(name, pairs)
    return ImageSet(name, num_classes, *tensors, mean.to(device), std.to(device), digest, value_range)


def even_order(labels: np.ndarray) -> np.ndarray:
    """A fixed random order of all images in which every stretch holds the classes in (nearly) equal shares.

    Image k of the n of its class (shuffled) takes position (k + 1/2) / n. RandomState, because its stream is frozen
    for all versions of numpy.
    """
    random = np.random.RandomState(SPLIT_SEED)
    position = np.empty(len(labels))
    for value in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == value))
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.lexsort((random.permutation(len(labels)), position))


def moments(images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and (population) standard deviation of each channel in units of value / 255, float32 (C,).

    Summed in integers, hence exact and the same on every machine, however many threads it has.
    """
    total = np.zeros((2, images.shape[1]), np.int64)
    for part in np.array_split(images, max(1, len(images) // 2000)):
        part = part.astype(np.uint32)  # 2,000 images of 96 x 96 with 255^2 each stay below 2^63 in the int64 sums
        total += np.stack([part.sum((0, 2, 3), dtype=np.int64), np.square(part).sum((0, 2, 3), dtype=np.int64)])
    mean, square = total / (images.size // images.shape[1])
    std = np.sqrt(square - mean**2)
    return torch.tensor(mean / 255, dtype=torch.float32), torch.tensor(std / 255, dtype=torch.float32)


def _digest(name: str, pairs) -> str:
    """16 hex digits over the arrays in their order: the bytes used and, through the order, the split."""
    h = hashlib.sha256(name.encode())
    for images, labels in pairs:
        h.update(str(images.shape).encode())
        h.update(np.ascontiguousarray(images))
        h.update(np.ascontiguousarray(labels.astype("<i8")))
    return h.hexdigest()[:16]


def _digits(root):
    """scikit-learn's digits: 1,797 images of 8 x 8, values 0 to 16 (no official test set: `load` holds one out)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images.astype(np.uint8)[:, None], bunch.target, None


def _binary(paths: list[Path], label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR's binary layout: label byte(s), the last one counts, then 3 x 1,024 pixels, planes first."""
    records = np.concatenate([np.fromfile(path, np.uint8) for path in paths]).reshape(-1, label_bytes + 3072)
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), records[:, label_bytes - 1]


def _cifar10(root):
    folder = fetch.locate("cifar10", root)
    batches = [folder / f"data_batch_{i}.bin" for i in range(1, 6)]
    return *_binary(batches, 1), _binary([folder / "test_batch.bin"], 1)


def _cifar100(root):
    """The 100 fine labels (the byte before is the coarse one)."""
    folder = fetch.locate("cifar100", root)
    return *_binary([folder / "train.bin"], 2), _binary([folder / "test.bin"], 2)


def _stl10(root):
    """STL-10's 5,000 labelled training and 8,000 test images, 96 x 96, stored column by column, labels 1 to 10."""
    folder = fetch.locate("stl10", root)

    def part(which):
        images = np.fromfile(folder / f"{which}_X.bin", np.uint8).reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)
        return images, np.fromfile(folder / f"{which}_y.bin", np.uint8) - 1

    return *part("train"), part("test")


def _tiny_imagenet(root):
    """Tiny ImageNet-200, 64 x 64: train to be split, the official val as test; grey JPEGs become RGB.

    Decoding 110,000 JPEGs takes a minute, so the arrays are kept in an .npz beside the folder's files.
    """
    folder = fetch.locate("tiny_imagenet", root)
    cache = folder / "decoded.npz"
    if cache.exists():
        with np.load(cache, allow_pickle=False) as arrays:
            return arrays["images"], arrays["labels"], (arrays["test_images"], arrays["test_labels"])
    classes = sorted((folder / "wnids.txt").read_text().split())
    number = {name: i for i, name in enumerate(classes)}
    train = [(path, number[c]) for c in classes for path in sorted((folder / "train" / c / "images").glob("*.JPEG"))]
    rows = [line.split("\t") for line in (folder / "val" / "val_annotations.txt").read_text().splitlines()]
    test = [(folder / "val" / "images" / row[0], number[row[1]]) for row in rows]
    found, wanted = (len(classes), len(train), len(test)), TINY_COUNTS
    if found != (wanted[0], wanted[0] * wanted[1], wanted[0] * wanted[2]):
        raise FileNotFoundError(
            f"{folder} holds {found[0]} classes, {found[1]:,} training and {found[2]:,} validation images instead of "
            f"{wanted[0]}, {wanted[0] * wanted[1]:,} and {wanted[0] * wanted[2]:,}; delete it and fetch it again."
        )
    with ThreadPoolExecutor() as pool:  # the decoder lets go of the interpreter lock
        pairs = [(np.stack(list(pool.map(_decode, [p for p, _ in part]))), np.array([n for _, n in part]))
                 for part in (train, test)]  # fmt: skip
    scratch = folder / f".decoded-{os.getpid()}.npz"
    try:
        np.savez(scratch, images=pairs[0][0], labels=pairs[0][1], test_images=pairs[1][0], test_labels=pairs[1][1])
        scratch.replace(cache)
    except OSError:  # a read-only or full disk costs the next load its minute, nothing else
        scratch.unlink(missing_ok=True)
    return *pairs[0], pairs[1]


def _decode(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


# name -> (reader giving training images, labels and the test pair; number of classes; largest pixel value)
READERS = {
    "digits": (_digits, 10, 16),
    "cifar10": (_cifar10, 10, 255),
    "cifar100": (_cifar100, 100, 255),
    "tiny_imagenet": (_tiny_imagenet, 200, 255),
    "stl10": (_stl10, 10, 255),
}


def normalise(images: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(images / 255 - mean) / std in `dtype` and channels_last; images uint8 (B, C, H, W), mean and std (C,).

    Computed in float32 (float64 for that dtype) and rounded once. No synchronisation: may be captured.
    """
    work = torch.promote_types(dtype, torch.float32)
    mean, std = mean.to(work)[:, None, None], std.to(work)[:, None, None]
    out = (images.to(work) / 255 - mean) / std
    return out.to(dtype).contiguous(memory_format=torch.channels_last)


def crop_and_flip(images: Tensor, dy: Tensor, dx: Tensor, flip: Tensor, padding: int = 4) -> Tensor:
    """Each image zero-padded by `padding`, cropped to its size at (dy, dx), then mirrored left to right where `flip`.

    images uint8 (B, C, H, W); dy, dx int64 (B,) in [0, 2 * padding]; flip bool (B,). One gather over the flattened
    pixels; no synchronisation, so it may be captured in a CUDA graph, and for the same reason the ranges of dy and dx
    are the caller's duty.
    """
    b, c, h, w = images.shape
    padded = F.pad(images, (padding,) * 4)
    rows = torch.arange(h, device=images.device) + dy[:, None]
    columns = torch.arange(w, device=images.device)
    columns = torch.where(flip[:, None], w - 1 - columns, columns) + dx[:, None]
    index = rows[:, :, None] * (w + 2 * padding) + columns[:, None, :]
    return padded.flatten(2).gather(2, index.view(b, 1, h * w).expand(b, c, h * w)).view(b, c, h, w)
