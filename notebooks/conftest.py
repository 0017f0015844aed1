"""Lets nbval reach its kernels by sockets in a folder: two that start side by side can pick the same free port."""

import functools
import os
import tempfile

import nbval.kernel

if os.name == "posix":
    nbval.kernel.KernelManager = functools.partial(
        nbval.kernel.KernelManager, transport="ipc", ip=os.path.join(tempfile.mkdtemp(), "kernel")
    )
