"""Files that are whole or absent, and where the repository keeps them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def results_folder() -> Path:
    """The results store: the folder named by FFR_RESULTS, else `results/` of the repository."""
    return Path(os.environ.get("FFR_RESULTS") or REPOSITORY / "results")


def write_atomically(path: Path | str, content: bytes | str | Callable) -> Path:
    """Writes `content` (bytes, text, or a function of the open binary file) so that `path` is never half written.

    Raises OSError (disk full, read-only folder) with the path in its message; the old file is then untouched.
    """
    path, name = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            name = file.name
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException as error:
        if name is not None:
            Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, f"{error.strerror}; nothing was written", str(path)) from error
        raise
    return path
