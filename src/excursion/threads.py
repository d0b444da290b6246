"""One thread for small matrices: faster than several beside busy workers, and the same bits on any machine."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import threadpoolctl
import torch

#: Above so many rows more threads pay.
_SMALL = 500


@functools.cache
def _pools() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()


@contextlib.contextmanager
def one_thread(n: int) -> Iterator[None]:
    """Limit torch, BLAS and OpenMP to one thread while matrices of n rows are worked on, if n is small.

    Threads that spin for work cost a factor of thirty on a machine whose cores are taken.
    """
    if n >= _SMALL:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _pools().limit(limits=1):
            yield
    finally:
        torch.set_num_threads(before)
