"""Where to look next: criteria that score candidates, and the search for the best batch."""

from __future__ import annotations

from .criteria import (
    CRITERIA,
    PES,
    SUR,
    Acquisition,
    ExclusionEntropy,
    MutualInformation,
    Prospect,
    Sobol,
    Straddle,
    acquisition_from_json,
)
from .search import Search, Target, poisson_disc, select

__all__ = [
    "CRITERIA",
    "PES",
    "SUR",
    "Acquisition",
    "ExclusionEntropy",
    "MutualInformation",
    "Prospect",
    "Search",
    "Sobol",
    "Straddle",
    "Target",
    "acquisition_from_json",
    "poisson_disc",
    "select",
]
