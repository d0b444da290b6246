"""Where to look next: criteria that score candidates, and the search for the best batch."""

from __future__ import annotations

from .batch import Offer, Offers
from .criteria import (
    CRITERIA,
    EAVC,
    EFF,
    EI,
    PES,
    PI,
    SUR,
    UCB,
    Acquisition,
    ExclusionEntropy,
    MutualInformation,
    Prospect,
    Ranjan,
    Sobol,
    Straddle,
    TargetedIMSE,
    acquisition_from_json,
)
from .search import Search, poisson_disc, select
from .target import Target, incumbent

__all__ = [
    "CRITERIA",
    "EAVC",
    "EFF",
    "EI",
    "PES",
    "PI",
    "SUR",
    "UCB",
    "Acquisition",
    "ExclusionEntropy",
    "MutualInformation",
    "Offer",
    "Offers",
    "Prospect",
    "Ranjan",
    "Search",
    "Sobol",
    "Straddle",
    "Target",
    "TargetedIMSE",
    "acquisition_from_json",
    "incumbent",
    "poisson_disc",
    "select",
]
