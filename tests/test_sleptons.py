import math
import pickle
import subprocess
import sys

import numpy as np
import pytest

from excursion.errors import ImpossiblePoint, InvalidPoint, InvalidStrategy, MissingExtra
from excursion.examples import sleptons
from excursion.examples.sleptons import (
    BINS,
    CROSS_SECTIONS,
    Production,
    Reconstructed,
    Simulation,
    background_spec,
    cross_section,
    decay,
    detect,
    fill,
    jet_resolution,
    lepton_resolution,
    met_significance,
    select,
    stransverse_mass,
)

POINT = {"m_slepton": 400.0, "m_chi": 200.0}


def reconstructed(leptons, jets=((0.0, 0.0, 0.0),), met=(-300.0, 0.0), muons=True):
    return Reconstructed(
        leptons=np.array([leptons], dtype=float),
        muons=np.array([muons]),
        jets=np.array([jets], dtype=float),
        met=np.array([met], dtype=float),
    )


# Two leptons on the same side, 0.6 rad apart in azimuth and 2 units in rapidity, against 300 GeV of ETmiss.
GOOD = ((160.0, 1.0, 0.3), (150.0, -1.0, -0.3))


def chosen(events):
    index, weights = select(events)
    return (BINS[index[0]] if index[0] >= 0 else None), weights[0]


@pytest.fixture(scope="module")
def small():
    return Simulation(events=300)(POINT, seed=5)


def test_module_needs_no_generator_to_be_imported():
    code = (
        "import sys, excursion.examples.sleptons\n"
        "print([m for m in ('pythia8mc', 'mt2', 'fastjet', 'awkward', 'pyhf') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("mass", "sigma"), [(100.0, 0.3657), (200.0, 0.03031), (400.0, 0.001859), (800.0, 5.863e-5)])
def test_cross_section_is_twice_the_published_one(mass, sigma):
    """The sum of both chiralities is published, too; to four digits."""
    assert cross_section(mass) == pytest.approx(2 * sigma, rel=3e-4)


@pytest.mark.parametrize(("mass", "left", "right"), [(200.0, 0.02194, 0.008372), (400.0, 0.001337, 5.221e-4)])
def test_cross_sections_of_each_chirality_are_published(mass, left, right):
    assert cross_section(mass, "left") == pytest.approx(2 * left, rel=1e-12)
    assert cross_section(mass, "right") == pytest.approx(2 * right, rel=1e-12)


@pytest.mark.parametrize("mass", [57.0, 333.0, 650.0])
def test_cross_sections_of_both_chiralities_add_up(mass):
    assert cross_section(mass) == pytest.approx(cross_section(mass, "left") + cross_section(mass, "right"), rel=1e-4)


def test_cross_section_between_the_published_masses_follows_a_power_law():
    # Between 400 and 440 GeV: exponent from the two published values.
    power = math.log(sum(CROSS_SECTIONS[440.0]) / sum(CROSS_SECTIONS[400.0])) / math.log(1.1)
    assert cross_section(420.0) == pytest.approx(2 * sum(CROSS_SECTIONS[400.0]) * 1.05**power, rel=1e-12)


@pytest.mark.parametrize("mass", [49.9, 801.0, math.nan])
def test_cross_section_is_not_extrapolated(mass):
    with pytest.raises(ImpossiblePoint, match="tabulated for 50 to 800 GeV"):
        cross_section(mass)


def test_published_counts():
    spec = background_spec()
    assert spec["channels"] == {"SR-SF-0J": 9, "SR-SF-1J": 9}
    assert {len(spec[name]) for name in ("observed", "background", "background_error")} == {18}
    assert len(BINS) == 18
    # Sums of the published tables, added up by hand.
    assert sum(spec["observed"]) == 147 + 120
    assert sum(spec["background"]) == pytest.approx(144.6 + 124.2)
    assert BINS[0] == "SR-SF-0J-[100,105)"
    assert BINS[17] == "SR-SF-1J-[260,inf)"


def test_counts_and_yields_fit_the_statistical_model(small):
    pytest.importorskip("pyhf")
    from excursion.evaluators.pyhf import CountsModel

    workspace = CountsModel(**background_spec()).workspace(small)
    assert [channel["name"] for channel in workspace["channels"]] == ["SR-SF-0J", "SR-SF-1J"]
    assert workspace["channels"][1]["samples"][0]["data"] == list(small.nominal[9:])


def test_decay_conserves_energy_and_momentum():
    rng = np.random.default_rng(1)
    p = rng.normal(scale=200.0, size=(2000, 2, 3))
    m, chi = 300.0, 120.0
    sleptons_ = np.concatenate([p, np.sqrt(m**2 + np.sum(p**2, -1, keepdims=True))], -1)
    leptons, neutralinos = decay(sleptons_, chi, rng)
    pt, eta, phi = np.moveaxis(leptons, -1, 0)
    lx, ly, lz = pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)
    np.testing.assert_allclose(np.stack([lx, ly], -1) + neutralinos, p[..., :2], atol=1e-9)
    # What is left after the lepton has the neutralino's mass.
    left = sleptons_[..., 3] - pt * np.cosh(eta)
    mass2 = left**2 - (p[..., 0] - lx) ** 2 - (p[..., 1] - ly) ** 2 - (p[..., 2] - lz) ** 2
    np.testing.assert_allclose(mass2, chi**2, rtol=1e-6)


def test_decay_is_isotropic_in_the_rest_frame():
    rest = np.tile([0.0, 0.0, 0.0, 300.0], (20000, 1, 1))
    leptons, _ = decay(rest, 0.0, np.random.default_rng(2))
    np.testing.assert_allclose(leptons[..., 0] * np.cosh(leptons[..., 1]), 150.0)
    cos = np.tanh(leptons[..., 1])
    assert abs(cos.mean()) < 4 / math.sqrt(3 * 20000)
    assert np.mean(cos**2) == pytest.approx(1 / 3, abs=0.01)


def at_rest(jets=((0.0, 0.0, 0.0),), soft=(0.0, 0.0), n=4000, decays=4):
    """Sleptons of 300 GeV at rest decay to massless neutralinos: leptons of 150 GeV. Detected with the same jets."""
    production = Production(
        sleptons=np.tile([0.0, 0.0, 0.0, 300.0], (n, 2, 1)),
        jets=np.tile(np.array(jets, dtype=float), (n, 1, 1)),
        soft=np.tile(np.array(soft, dtype=float), (n, 1)),
    )
    return detect(production, 0.0, decays, np.random.default_rng(3))


def vectors(objects):
    return objects[..., :1] * np.stack([np.cos(objects[..., 2]), np.sin(objects[..., 2])], -1)


def test_leptons_are_smeared_with_their_resolution():
    events = at_rest()
    assert events.muons.mean() == 0.5
    true = 150.0 / np.cosh(events.leptons[..., 1])
    for muons in (True, False):
        chosen_, pt = events.leptons[events.muons == muons, :, 0], true[events.muons == muons]
        pulls = (chosen_ - pt) / lepton_resolution(pt, np.array(muons))
        assert pulls.mean() == pytest.approx(0.0, abs=0.03)
        assert pulls[pt > 20].std() == pytest.approx(1.0, abs=0.03)
    assert lepton_resolution(np.array(100.0), np.array(True)) == pytest.approx(math.hypot(1.5, 1.0))
    assert lepton_resolution(np.array(100.0), np.array(False)) == pytest.approx(math.sqrt(2.0))


def test_missing_momentum_is_minus_what_is_seen():
    # A jet that is always seen, one that is (nearly) always lost to its tracks, a soft recoil.
    events = at_rest(jets=((300.0, 0.5, 1.0), (10.0, -1.0, 0.0)), soft=(50.0, -20.0))
    seen = vectors(events.leptons).sum(1) + vectors(events.jets).sum(1)
    rare = events.jets[:, 1, 0] > 0
    assert rare.mean() < 0.05
    rest = (events.met + seen)[~rare]
    np.testing.assert_allclose(rest.mean(0), [-0.6 * (50 + 10), 0.6 * 20], atol=0.3)
    np.testing.assert_allclose(rest.std(0), 8.9, rtol=0.03)


def test_tracks_of_forward_jets_are_not_seen():
    events = at_rest(jets=((12.0, 2.6, 0.0),))
    rest = events.met + vectors(events.leptons).sum(1)
    np.testing.assert_allclose(rest.mean(0), 0.0, atol=0.3)


def test_jets_are_smeared_and_rejected_as_pile_up():
    events = at_rest(jets=((200.0, 0.5, 1.0), (40.0, 1.0, -2.0)))
    hard, soft = events.jets[:, 0, 0], events.jets[:, 1, 0]
    assert np.all(hard > 0)
    assert ((hard - 200) / jet_resolution(np.array(200.0))).std() == pytest.approx(1.0, abs=0.03)
    assert np.mean(soft > 0) == pytest.approx(0.92, abs=0.01)
    assert soft[soft > 0].mean() == pytest.approx(40.0, abs=0.2)
    assert jet_resolution(np.array(100.0)) == pytest.approx(math.sqrt(16 + 36 + 9))


@pytest.mark.parametrize(("eta", "share"), [(2.3, 0.92), (2.5, 0.0), (-2.5, 0.0)])
def test_forward_jets_need_more_momentum(eta, share):
    # 25 +- 5.1 GeV: mostly above 20, hardly ever above 30 with the pile-up rejection.
    seen = np.mean(at_rest(jets=((25.0, eta, 1.0),)).jets[:, 0, 0] > 0)
    assert seen == pytest.approx(share * 0.84 if share else 0.92 * 0.16, abs=0.02)


def test_generated_events_balance():
    production = sleptons.generate(300.0, 100.0, 600, "parton", 1)
    assert np.all(np.diff(production.jets[..., 0], axis=1) <= 0)
    assert np.all(production.jets[..., 0].min(initial=99, where=production.jets[..., 0] > 0) >= 10)
    mass2 = production.sleptons[..., 3] ** 2 - np.sum(production.sleptons[..., :3] ** 2, axis=-1)
    np.testing.assert_allclose(mass2, 300.0**2, rtol=1e-6)
    # The pair recoils from jets and soft activity; only what leaves close to the beams is missing.
    pair = production.sleptons[..., :2].sum(axis=1)
    recoil = vectors(production.jets).sum(1) + production.soft
    contained = np.hypot(*(pair + recoil).T) / np.hypot(*pair.T)
    assert np.median(contained) < 0.3
    other = sleptons.generate(300.0, 100.0, 600, "parton", 2)
    assert not np.array_equal(other.sleptons, production.sleptons)


@pytest.mark.parametrize(("fidelity", "on"), [("parton", False), ("hadron", True)])
def test_what_the_fidelities_switch_on(fidelity, on):
    pythia = sleptons._pythia(300.0, 100.0, fidelity, 1)
    assert pythia.flag("PartonLevel:MPI") is on
    assert pythia.flag("HadronLevel:all") is on
    assert pythia.flag("PartonLevel:ISR")


def test_selected_event_and_its_weight():
    name, weight = chosen(reconstructed(GOOD))
    assert name == "SR-SF-0J-[260,inf)"
    assert weight == pytest.approx(0.90 * 0.93**2, rel=1e-12)
    name, weight = chosen(reconstructed(GOOD, muons=False))
    assert name == "SR-SF-0J-[260,inf)"
    assert weight == pytest.approx(0.95 * (0.84 + 0.03 * 0.6) * (0.84 + 0.03 * 0.5), rel=1e-12)


def test_one_jet_goes_to_the_one_jet_region_and_pays_for_the_b_veto():
    name, weight = chosen(reconstructed(GOOD, jets=((30.0, 1.0, 2.5), (0.0, 0.0, 0.0))))
    assert name == "SR-SF-1J-[260,inf)"
    assert weight == pytest.approx(0.97 * 0.90 * 0.93**2, rel=1e-12)


@pytest.mark.parametrize(
    "events",
    [
        pytest.param(reconstructed(((160.0, 1.0, 0.3), (24.9, -1.0, -0.3))), id="soft lepton"),
        pytest.param(reconstructed(((160.0, 2.61, 0.3), (150.0, -1.0, -0.3))), id="forward muon"),
        pytest.param(reconstructed(((160.0, 2.48, 0.3), (150.0, 0.4, -0.3)), muons=False), id="forward electron"),
        pytest.param(reconstructed(((160.0, 0.3, 0.3), (150.0, 0.3, -0.3))), id="mll of a Z"),
        pytest.param(reconstructed(GOOD, jets=((30.0, 1.0, 2.5), (25.0, -1.0, 2.5))), id="two jets"),
        pytest.param(reconstructed(GOOD, jets=((30.0, 0.8, 0.2), (0.0, 0.0, 0.0))), id="lepton in a jet"),
        pytest.param(reconstructed(GOOD, met=(-109.0, 0.0)), id="ETmiss"),
        pytest.param(reconstructed(GOOD, met=(191.0, 59.0)), id="mT2: ETmiss along a lepton"),
        pytest.param(reconstructed(((2000.0, 1.0, 0.3), (150.0, -1.0, -0.3))), id="significance"),
    ],
)
def test_rejected_events(events):
    assert chosen(events) == (None, 0.0)


@pytest.mark.parametrize("region", [0, 1])
@pytest.mark.parametrize(
    ("mt2", "place"),
    [
        *[(99.9, None), (100.1, 0), (104.9, 0), (105.1, 1), (109.9, 1), (110.1, 2), (119.9, 2), (120.1, 3), (139.9, 3)],
        *[(140.1, 4), (159.9, 4), (160.1, 5), (179.9, 5), (180.1, 6), (219.9, 6), (220.1, 7), (259.9, 7), (260.1, 8)],
    ],
)
def test_mt2_bins(mt2, place, region):
    # Two (nearly) equal momenta p against ETmiss: the symmetric split is the best one, mT2^2 = 2 p ETmiss.
    met = mt2 + 12.0
    p = mt2**2 / (2 * met)
    jet = (21.0, 0.0, 1.5) if region else (0.0, 0.0, 0.0)
    index, _ = select(reconstructed(((p, 2.0, 0.01), (p, -2.0, -0.01)), (jet,), met=(-met, 0.0)))
    assert index[0] == (-1 if place is None else 9 * region + place)


def test_forward_jets_are_not_counted():
    assert chosen(reconstructed(GOOD, jets=((50.0, 2.5, 2.5), (60.0, -3.0, 2.0))))[0] == "SR-SF-0J-[260,inf)"


def test_significance_of_a_single_direction():
    # All of the resolution lies along x: soft term, one muon of 100 GeV (twice), no jet.
    events = reconstructed(((100.0, 0.0, 0.0), (100.0, 0.0, math.pi)), met=(120.0, 0.0))
    muon = math.hypot(1.5, 1.0)
    assert met_significance(events)[0] == pytest.approx(120 / math.sqrt(8.9**2 + 2 * muon**2), rel=1e-12)
    # Across, only the soft term is left.
    events = reconstructed(((100.0, 0.0, 0.0), (100.0, 0.0, math.pi)), met=(0.0, 120.0))
    assert met_significance(events)[0] == pytest.approx(120 / 8.9, rel=1e-9)


def test_significance_does_not_change_when_the_event_is_turned():
    turned = []
    for angle in (0.0, 1.1):
        leptons = tuple((pt, eta, phi + angle) for pt, eta, phi in GOOD)
        met = (-300.0 * math.cos(angle), -300.0 * math.sin(angle))
        turned.append(met_significance(reconstructed(leptons, ((40.0, 1.0, 2.0 + angle),), met))[0])
    assert turned[0] == pytest.approx(turned[1], rel=1e-9)


def test_mt2_by_brute_force():
    leptons = np.array([[(120.0, 0.3, 0.4), (90.0, -0.8, -1.9)]])
    met = np.array([[-60.0, 130.0]])
    # Definition: minimum over the split of ETmiss of the larger transverse mass.
    grid = np.linspace(-400, 400, 1601)
    qx, qy = np.meshgrid(grid, grid)

    def transverse_mass2(lepton, x, y):
        pt, _, phi = lepton
        return 2 * pt * (np.hypot(x, y) - x * math.cos(phi) - y * math.sin(phi))

    larger = np.maximum(
        transverse_mass2(leptons[0, 0], qx, qy), transverse_mass2(leptons[0, 1], met[0, 0] - qx, met[0, 1] - qy)
    )
    assert stransverse_mass(leptons, met)[0] == pytest.approx(math.sqrt(larger.min()), rel=2e-3)


def test_same_seed_same_yields_other_seed_other_yields(small):
    again = Simulation(events=300)(POINT, seed=5)
    other = Simulation(events=300)(POINT, seed=6)
    assert again.nominal == small.nominal
    assert again.errors == small.errors
    assert other.nominal != small.nominal


def test_yields_scale_with_luminosity(small):
    double = Simulation(events=300, luminosity=278.0)(POINT, seed=5)
    np.testing.assert_allclose(double.nominal, 2 * np.array(small.nominal), rtol=1e-12)
    np.testing.assert_allclose(double.errors, 2 * np.array(small.errors), rtol=1e-12)


def test_all_weight_adds_up_to_cross_section_times_luminosity():
    produced = 1000 * cross_section(400.0) * 139
    index = np.random.default_rng(0).integers(0, 18, 60)
    nominal, errors = fill(index, np.ones(60), generated=20, produced=produced)
    assert nominal.sum() == pytest.approx(1000 * 2 * 0.0018591 * 139, rel=1e-12)
    # Three measurements of each of 20 pairs: at least one and at most three of them share a bin.
    assert np.all(errors**2 >= nominal * produced / 60 * (1 - 1e-12))
    assert np.all(errors**2 <= 3 * nominal * produced / 60)


def test_errors_count_pairs_not_their_measurements():
    # Two pairs; the first lands in bin 3 with all of its four measurements, the second nowhere.
    index = np.array([3, 3, 3, 3, -1, -1, -1, -1])
    nominal, errors = fill(index, np.where(index >= 0, 0.5, 0.0), generated=2, produced=10.0)
    assert nominal[3] == pytest.approx(2.5)
    assert errors[3] == pytest.approx(2.5)
    assert nominal.sum() == nominal[3]


def test_yields_of_a_real_run(small):
    assert len(small.nominal) == len(small.errors) == 18
    produced = 1000 * 2 * (0.001337 + 0.0005221) * 139
    assert small.info["produced"] == pytest.approx(produced, rel=1e-9)
    assert small.info["acceptance"] == pytest.approx(sum(small.nominal) / produced, rel=1e-9)
    # A quarter of the pairs is seen (0.27 with many events), and the endpoint (m^2 - m_chi^2) / m is at 300 GeV.
    assert small.info["acceptance"] == pytest.approx(0.27, abs=0.05)
    assert 0 < small.nominal[8] < small.nominal[6]


def test_errors_describe_the_spread_of_independent_runs():
    # One run of 2500 pairs, cut into 50 runs of 50: their yields scatter as much as their errors say.
    decays = 4
    production = sleptons.generate(400.0, 200.0, 2500, "parton", 7)
    index, weights = select(sleptons.detect(production, 200.0, decays, np.random.default_rng(7)))
    size = 50 * decays
    parts = [slice(start, start + size) for start in range(0, len(index) - size + 1, size)]
    nominal, errors = np.array([fill(index[part], weights[part], 50, 100.0) for part in parts]).transpose(1, 0, 2)
    filled = nominal.mean(axis=0) > 1.0
    assert filled.sum() >= 8
    ratios = nominal.std(axis=0, ddof=1) / np.sqrt(np.mean(errors**2, axis=0))
    assert ratios[filled].mean() == pytest.approx(1.0, abs=0.12)


def test_no_sensitivity_is_a_result_not_an_error():
    yields = Simulation(events=100)({"m_slepton": 300.0, "m_chi": 295.0}, seed=1)
    assert yields.nominal == (0.0,) * 18
    assert yields.errors == (0.0,) * 18


def test_massless_neutralino_and_hadron_fidelity():
    yields = Simulation(events=60, fidelity="hadron")({"m_slepton": 500.0, "m_chi": 0.0}, seed=1)
    assert yields.info["fidelity"] == "hadron"
    assert yields.info["generated"] == 60
    assert 0.2 < yields.info["acceptance"] < 0.6


@pytest.mark.parametrize(
    "x",
    [{"m_slepton": 300.0, "m_chi": 300.0}, {"m_slepton": 300.0, "m_chi": 400.0}, {"m_slepton": 300.0, "m_chi": -1.0}],
)
def test_beyond_the_kinematic_edge(x):
    with pytest.raises(ImpossiblePoint, match="0 <= m_chi < m_slepton"):
        Simulation(events=10)(x, seed=1)


def test_no_cross_section_no_simulation():
    with pytest.raises(ImpossiblePoint, match="tabulated for 50 to 800"):
        Simulation(events=10)({"m_slepton": 900.0, "m_chi": 1.0}, seed=1)


def test_a_point_that_pythia_refuses():
    # 2 x 7 TeV do not fit into 13 TeV; Simulation never gets there, the generator's own check does.
    with pytest.raises(ImpossiblePoint, match="Pythia must accept the point"):
        sleptons.generate(7000.0, 1.0, 10, "parton", 1)


def test_missing_mass():
    with pytest.raises(InvalidPoint, match="needs m_slepton and m_chi"):
        Simulation(events=10)({"m_slepton": 300.0}, seed=1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"events": 0}, "events >= 1"),
        ({"decays": 3}, "even number of decays"),
        ({"decays": 0}, "even number of decays"),
        ({"luminosity": 0.0}, "luminosity > 0"),
        ({"fidelity": "fast"}, "fidelity must be one of"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(InvalidStrategy, match=words):
        Simulation(**settings)


@pytest.fixture(scope="module")
def split():
    """A point in three dimensions: left-handed sleptons of 400 GeV, right-handed ones of 700."""
    return Simulation(events=600)({"m_L": 400.0, "m_R": 700.0, "m_chi": 200.0}, seed=5)


@pytest.mark.parametrize(("chirality", "codes"), [("left", "1000011,1000013"), ("right", "2000011,2000013")])
def test_which_pairs_are_generated(chirality, codes):
    pythia = sleptons._pythia(300.0, 100.0, "parton", 1, chirality)
    assert ",".join(map(str, pythia.settings.mvec("SUSY:idVecA"))) == codes
    batch = pythia.nextBatch(20).prt
    found = {abs(int(i)) for event in batch.id for i in event if 1000000 < abs(int(i)) < 3000000}
    assert found == {int(code) for code in codes.split(",")}


def test_each_chirality_is_generated_with_its_mass_and_counted_with_its_cross_section(split):
    left, right = (Simulation(events=300)({"m_slepton": mass, "m_chi": 200.0}, seed=6) for mass in (400.0, 700.0))
    assert split.info["generated"] == 600
    assert split.info["cross_section_pb"] == pytest.approx(2 * (0.001337 + 3.511e-5), rel=1e-9)
    shares = 2 * 139e3 * np.array([0.001337, 3.511e-5])
    assert split.info["produced"] == pytest.approx(shares.sum())
    # Left and right are seen alike (to the per cent), so that samples of both at each mass predict the sum.
    accepted = shares @ [left.info["acceptance"], right.info["acceptance"]]
    assert sum(split.nominal) == pytest.approx(accepted, rel=0.15)
    # In the last bin, mT2 > 260 GeV, the heavy ones count: their endpoint is at 640 GeV instead of 300.
    last = [0.0, 0.0]
    for k, (yields, kind) in enumerate(((left, 0.001337 / 0.0018591), (right, 3.511e-5 / 1.2347e-4))):
        last[k] = kind * (yields.nominal[8] + yields.nominal[17])
    error = math.hypot(split.errors[8], split.errors[17])
    assert last[1] > 0.2 * last[0]
    assert split.nominal[8] + split.nominal[17] == pytest.approx(sum(last), abs=4 * error)


def test_two_samples_add_up_their_errors_in_quadrature(split):
    """Each sample by hand, from the same random numbers."""
    nominal, variances = np.zeros(18), np.zeros(18)
    seeds = np.random.SeedSequence(5).spawn(4)
    for (kind, mass), pythia, detector in zip((("left", 400.0), ("right", 700.0)), seeds[::2], seeds[1::2]):
        number = 1 + int(pythia.generate_state(1, np.uint64)[0] % 900_000_000)
        production = sleptons.generate(mass, 200.0, 300, "parton", number, kind)
        index, weights = select(detect(production, 200.0, 10, np.random.default_rng(detector)))
        yields, errors = fill(index, weights, 300, 139e3 * cross_section(mass, kind))
        nominal += yields
        variances += errors**2
    np.testing.assert_allclose(split.nominal, nominal, rtol=1e-9)
    np.testing.assert_allclose(split.errors, np.sqrt(variances), rtol=1e-9)


def test_yields_go_with_the_square_of_the_branching_ratio(split):
    half = Simulation(events=600)({"m_L": 400.0, "m_R": 700.0, "m_chi": 200.0, "br": 0.5}, seed=5)
    np.testing.assert_allclose(half.nominal, np.array(split.nominal) / 4, rtol=1e-12)
    np.testing.assert_allclose(half.errors, np.array(split.errors) / 4, rtol=1e-12)
    assert half.info["acceptance"] == pytest.approx(split.info["acceptance"], rel=1e-12)


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        ({"m_L": 300.0, "m_chi": 1.0}, InvalidPoint, "m_L, m_R and m_chi"),
        ({"m_L": 300.0, "m_R": 300.0}, InvalidPoint, "m_L, m_R and m_chi"),
        ({"m_slepton": 300.0, "m_L": 300.0, "m_chi": 1.0}, InvalidPoint, "m_L, m_R and m_chi"),
        ({"m_L": 300.0, "m_R": 100.0, "m_chi": 150.0}, ImpossiblePoint, "0 <= m_chi < m_slepton"),
        ({"m_L": 100.0, "m_R": 300.0, "m_chi": 150.0}, ImpossiblePoint, "0 <= m_chi < m_slepton"),
        ({"m_L": 300.0, "m_R": 900.0, "m_chi": 150.0}, ImpossiblePoint, "tabulated for 50 to 800"),
        ({"m_slepton": 300.0, "m_chi": 1.0, "br": 0.0}, ImpossiblePoint, "a branching ratio lies in"),
        ({"m_slepton": 300.0, "m_chi": 1.0, "br": 1.01}, ImpossiblePoint, "a branching ratio lies in"),
    ],
)
def test_points_without_meaning(x, error, words):
    with pytest.raises(error, match=words):
        Simulation(events=10)(x, seed=1)


@pytest.mark.parametrize("package", ["pythia8mc", "awkward", "fastjet", "mt2"])
def test_a_missing_package_is_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"needs the package '{package}'.*pip install 'excursion\[pythia\]'"):
        Simulation(events=40)(POINT, seed=1)


def test_the_recipe_travels():
    assert pickle.loads(pickle.dumps(Simulation(events=7))) == Simulation(events=7)


def test_nothing_is_printed():
    code = (
        "from excursion.examples.sleptons import Simulation\n"
        "Simulation(events=20)({'m_slepton': 300.0, 'm_chi': 100.0}, seed=1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
