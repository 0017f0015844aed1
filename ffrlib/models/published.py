"""Published ResNet-20 and ResNet-56 with option A, trained on CIFAR-10 by Y. Idelbayev (BSD 2-clause).

91.73 and 93.39 % of the official test images (9,173 and 9,339 of 10,000). They are the best epoch *on the test set*, so
a dense net trained here lies a little lower: say so wherever these stand in a table. The files are read from the folder
FFR_WEIGHTS, or else from data/weights/ or data/raw/weights/ of the repository; nothing is downloaded.
"""

import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ffrlib import models
from ffrlib.fetch import checksum
from ffrlib.files import REPOSITORY, write_atomically
from ffrlib.spec import choose, require

PUBLISHED_MEAN = (0.485, 0.456, 0.406)  # of the input in [0, 1] units: what these weights were trained with,
PUBLISHED_STD = (0.229, 0.224, 0.225)  # not the statistics of CIFAR-10
CHECKSUMS = {  # SHA-256 of the .npz files
    "resnet20": "ef390b25c0bd77a1d993ba3e82815a15587ea4ba6d00f99503aecbeccd137822",
    "resnet56": "f222bdf1125caa30541208723397bf1b29cd1c875c2fb8e2afd36d6a2c2e0161",
}


def locate(name: str, root: str | os.PathLike | None = None) -> Path:
    """The checked file of `name` in `root`, or else in the folders named above.

    Raises ValueError for an unknown name or a file with another checksum, FileNotFoundError with what to do.
    """
    choose("published weights of", name, CHECKSUMS)
    data, file = REPOSITORY / "data", f"{name}-A-cifar10.npz"
    places = [root] if root else [os.environ.get("FFR_WEIGHTS"), data / "weights", data / "raw" / "weights"]
    folders = [Path(place) for place in places if place]
    for path in (folder / file for folder in folders):
        if path.is_file():
            found = checksum(path, "sha256")
            require(found == CHECKSUMS[name], f"SHA-256 of {path}", found, CHECKSUMS[name])
            return path
    raise FileNotFoundError(
        f"{file} is in none of {', '.join(map(str, folders))}. The weights are published at "
        f"https://github.com/akamaster/pytorch_resnet_cifar10 (commit d5489e8) as pretrained_models/{name}-*.th; "
        "make the .npz of that file with ffrlib.models.published.convert, and name its folder in FFR_WEIGHTS."
    )


def load(name: str, root: str | os.PathLike | None = None) -> nn.Module:
    """The published net `name` ("resnet20" or "resnet56", option A), float32, on the CPU, in eval mode.

    Its input is normalised by PUBLISHED_MEAN and PUBLISHED_STD. Raises what `locate` raises.
    """
    path = locate(name, root)
    with np.load(path, allow_pickle=False) as file:
        state = {key: torch.from_numpy(file[key]) for key in file.files}
    layout = models.Layout(name, 10, "A", models.scaled_widths(name, 1), None)
    return models.rebuild(layout, state).eval()  # torch adds batch norm's counts of batches, which these files lack


def convert(original: str | os.PathLike, path: str | os.PathLike) -> Path:
    """Write the tensors of the author's .th file by name as the .npz that `locate` wants; `locate` checks the result.

    The .th format is torch's pickle: it is read here alone, and with weights_only=True, which runs no code of it.
    """
    state = torch.load(original, map_location="cpu", weights_only=True)["state_dict"]
    arrays = {key.removeprefix("module."): value.numpy() for key, value in state.items() if "num_batches" not in key}
    return write_atomically(path, lambda file: np.savez(file, **arrays))
