"""Cholesky factors with a jitter ladder."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import FitError

#: Tried in turn, relative to the mean diagonal, until the Cholesky factorisation succeeds.
JITTERS = (0.0, 1e-12, 1e-10, 1e-8, 1e-6)


def cholesky(matrix: Tensor) -> Tensor:
    """Lower Cholesky factor of a symmetric matrix (n, n), with the least jitter of `JITTERS` that works.

    Raises:
        FitError: not positive definite even with the largest jitter, or not finite.
    """
    size = matrix.diagonal().mean()
    for jitter in JITTERS:
        factor, info = torch.linalg.cholesky_ex(matrix + jitter * size * torch.eye(len(matrix), dtype=matrix.dtype))
        if not info.any() and torch.isfinite(factor).all():
            return factor
    raise FitError(
        f"Gaussian process: the covariance of {len(matrix)} points must be positive definite, got mean diagonal "
        f"{float(size):.3g} and largest jitter {JITTERS[-1]:g}. Look for duplicated points with different values"
    )


def solve(factor: Tensor, right: Tensor) -> Tensor:
    """L^-1 right for a lower triangular L."""
    return torch.linalg.solve_triangular(factor, right, upper=False)


def bordered(factor: Tensor, v: Tensor, corner: Tensor) -> Tensor:
    """The Cholesky factor of a matrix with m more rows and columns.

    Args:
        factor: L of the matrix before, (n, n).
        v: L^-1 times the new columns' upper part, (n, m).
        corner: the factor of the Schur complement, (m, m).
    """
    zeros = torch.zeros(len(factor), len(corner), dtype=factor.dtype)
    return torch.cat([torch.cat([factor, zeros], 1), torch.cat([v.T, corner], 1)], 0)
