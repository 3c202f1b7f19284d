"""Features of slices: closed forms of the filter bank, and weights that are loaded only as what they are said to be."""

import hashlib
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffusers_ct.metrics.distribution import kid
from diffusers_ct.metrics.feature_extractors import FilterBankExtractor, NetworkExtractor
from diffusers_ct.metrics.feature_sets import extract_features, plane_slices

SETTINGS = {"windows": ["soft_tissue", "lung", "bone"], "side_pixels": 32, "mean": [0.5] * 3, "sd": [0.25] * 3}


class TinyNetwork(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 5, 3, stride=2)

    def forward(self, x):
        return self.convolution(x).relu().mean((2, 3))


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return TinyNetwork().eval()


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "network.pt2"
    batch = {0: torch.export.Dim("batch", min=1, max=512)}
    torch.export.save(torch.export.export(network, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=(batch,)), path)
    return path


@pytest.fixture
def slices():
    return np.random.default_rng(0).normal(0, 200, (3, 40, 28))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_filter_bank_of_uniform_slices_by_hand():
    """No filter answers to a constant: what is left is the share inside each window and its mean, mapped to [-1, 1]."""
    extractor = FilterBankExtractor()
    found = extractor(np.stack([np.full((40, 28), 40.0), np.full((40, 28), -600.0)])).reshape(2, 3, -1)
    assert found.shape == (2, 3, extractor.features // 3)
    np.testing.assert_array_equal(found[..., 0], [[1, 1, 1], [0, 1, 0]])
    np.testing.assert_allclose(found[0, :, 1], [0.0, 2 * (40 + 1350) / 1500 - 1, 2 * (40 + 450) / 1500 - 1], atol=1e-12)
    np.testing.assert_allclose(found[1, :, 1], 0.0, atol=1e-12)  # the centre of the lung window; none of the others
    np.testing.assert_allclose(found[..., 2:], 0.0, atol=1e-9)


def test_each_window_measures_its_own_pixels():
    """Half the slice is air of another noise: mean and noise of soft tissue do not change with it."""
    rng = np.random.default_rng(0)
    image = rng.normal(40, 10, (1, 64, 64))
    image[:, :, 32:] = -900.0
    other = image.copy()
    other[:, :, 32:] = rng.normal(-800, 15, (1, 64, 32))
    extractor = FilterBankExtractor(["soft_tissue"])
    np.testing.assert_allclose(extractor(image), extractor(other), atol=1e-12)
    found = extractor(image)[0]
    assert found[0] == 0.5 and found[1] == pytest.approx((image[..., :32].mean() - 40) / 200)
    assert found[2] == pytest.approx(image[..., :32].std() / 200)


def test_pixels_outside_the_window_do_not_dilute_the_filters():
    tissue = np.random.default_rng(0).normal(40, 20, (64, 64))
    little, much = (np.pad(tissue, ((0, 0), (0, n)), constant_values=-900.0)[None] for n in (32, 160))
    extractor = FilterBankExtractor(["soft_tissue"], scales=2)
    a, b = extractor(little)[0], extractor(much)[0]
    assert (a[0], b[0]) == pytest.approx((64 / 96, 64 / 224))
    np.testing.assert_allclose(a[1:], b[1:], rtol=0.01)


def test_a_wave_answers_in_its_octave_and_direction_with_its_amplitude():
    """cos(2 pi f x) at a filter's centre: the one-sided filter halves it and has modulus 1/2 everywhere."""
    extractor = FilterBankExtractor([(-1.0, 1.0)], scales=3, orientations=4)
    x = np.arange(128)
    for octave in range(3):
        for axis, direction in ((1, 0), (0, 2)):
            # half a pixel of phase, so that the mirrored border continues the wave
            wave = 0.5 * np.cos(2 * np.pi * 0.25 / 2**octave * (x + 0.5))
            image = np.broadcast_to(wave if axis == 1 else wave[:, None], (128, 128))
            moduli = 0.01 * np.expm1(extractor(image[None])[0, 3 : 3 + 12]).reshape(3, 4)
            assert np.unravel_index(moduli.argmax(), moduli.shape) == (octave, direction)
            assert moduli[octave, direction] == pytest.approx(0.25, rel=1e-6)


def test_second_order_is_the_envelope_of_a_modulated_wave():
    """(1 + a cos w2 x) cos(w0 x) / 2 with small a: the modulus of octave 0 swings by a (G(f0 + f2) + G(f0 - f2)) / 8,
    where G is the log-Gabor response; the octave of f2 lets just that swing pass."""
    a, f0, f2 = 0.1, 0.25, 0.0625
    x = np.arange(128) + 0.5
    wave = 0.5 * (1 + a * np.cos(2 * np.pi * f2 * x)) * np.cos(2 * np.pi * f0 * x)
    found = FilterBankExtractor([(-1.0, 1.0)], scales=3, orientations=4)(np.broadcast_to(wave, (1, 128, 128)))[0]
    gains = [np.exp(-0.5 * (np.log(f / f0) / np.log(0.65)) ** 2) for f in (f0 + f2, f0 - f2)]
    swing = a * sum(gains) / 8 * np.abs(np.cos(2 * np.pi * f2 * x[::4]))  # on the grid of octave 2
    # share, mean, sd, 12 first-order features, then octaves (0, 1) and (0, 2) of the first direction
    assert found[16] == pytest.approx(np.mean(np.log1p(swing / 0.01)), rel=0.02)


def test_filter_bank_is_deterministic_and_batch_free(slices):
    extractor = FilterBankExtractor()
    together = extractor(slices)
    np.testing.assert_array_equal(together, FilterBankExtractor()(slices.copy()))
    np.testing.assert_allclose(np.concatenate([extractor(s[None]) for s in slices]), together, rtol=1e-12, atol=1e-12)


def test_features_take_floats_and_fixed_windows(slices):
    """Neither 8 bits (0.2 HU must show) nor the slice's own range (metal must not rescale the rest)."""
    extractor = FilterBankExtractor(["full"])
    assert extractor(slices + 0.2)[0, 1] - extractor(slices)[0, 1] == pytest.approx(2 * 0.2 / 4095, rel=1e-6)
    metal = np.zeros((1, 64, 64))
    metal[0, 0, 0] = 3000.0
    water = extractor(np.zeros((1, 64, 64)))[0, 1]
    assert extractor(metal)[0, 1] - water == pytest.approx(2 * 3000 / 4095 / 64**2)


def test_noise_texture_is_seen_at_equal_variance():
    rng = np.random.default_rng(0)
    white = rng.normal(0, 20, (40, 32, 32))
    coarse = np.fft.ifft2(np.fft.fft2(white) * (np.hypot(*np.meshgrid(*[np.fft.fftfreq(32)] * 2)) < 0.15)).real
    coarse *= white.std() / coarse.std()
    volumes = [(v[None], (3.0, 1.0, 1.0)) for v in (*white, *coarse)]
    arguments = {"extractor": FilterBankExtractor(), "plane": "axial", "pixel_mm": 1.0, "slices_per_volume": 1}
    one, two = (extract_features(volumes[k : k + 20], patients=range(20), **arguments) for k in (0, 20))
    other = extract_features(volumes[40:60], patients=range(20), **arguments)
    same, different = kid(one, two), kid(one, other)
    assert abs(same.value) < 3 * same.standard_error and different.value > 10 * different.standard_error


def test_planes_are_evenly_spaced_and_resampled_to_square_pixels():
    z, y, x = np.mgrid[:8, :12, :10].astype(float)
    volume, spacing = 100 * z + 10 * y + x, (4.0, 1.0, 2.0)
    axial = plane_slices(volume, spacing, plane="axial", pixel_mm=1.0, slices=4)
    assert axial.shape == (4, 12, 20)
    np.testing.assert_allclose(axial.mean(axis=(1, 2)), 100 * np.array([1, 3, 5, 7]) + 55 + 4.5, rtol=1e-6)
    coronal = plane_slices(volume, spacing, plane="coronal", pixel_mm=2.0, slices=16)
    assert coronal.shape == (12, 16, 10)  # no more slices than there are
    sagittal = plane_slices(volume, spacing, plane="sagittal", pixel_mm=4.0, slices=2)
    assert sagittal.shape == (2, 8, 3)
    fine = np.random.default_rng(0).normal(0, 1, (1, 200, 200))
    coarse = plane_slices(fine, (1.0, 1.0, 1.0), plane="axial", pixel_mm=4.0, slices=1)
    assert coarse.std() < 0.3  # antialiased: noise is averaged, not picked out (1/4 by plain 4 x 4 means)
    # every 4 rows meet in one pixel, and (antialiased, inside) it is their mean
    np.testing.assert_allclose(sagittal[:, :, 1] - sagittal[:, :1, 1], np.tile(100.0 * np.arange(8), (2, 1)), atol=1e-3)
    assert sagittal[0, 0, 1] == pytest.approx(10 * 5.5 + 2, abs=1e-3)


def test_extract_features_names_what_it_did_and_counts_patients():
    volumes = [(np.random.default_rng(k).normal(0, 100, (4, 20, 20)), (2.0, 1.0, 1.0)) for k in range(3)]
    arguments = {"extractor": FilterBankExtractor(), "plane": "axial", "pixel_mm": 1.0, "slices_per_volume": 2}
    found = extract_features(iter(volumes), patients=["c", "a", "b"], **arguments)
    assert found.extractor.startswith("filter bank v1") and found.extractor.endswith("axial, 1 mm")
    np.testing.assert_array_equal(found.patients, ["a", "a", "b", "b", "c", "c"])
    expected = FilterBankExtractor()(plane_slices(*volumes[1], plane="axial", pixel_mm=1.0, slices=2))
    np.testing.assert_array_equal(found.features[:2], expected)
    for patients in (["a", "b"], ["a", "b", "c", "d"]):
        with pytest.raises(ValueError, match="patients"):
            extract_features(volumes, patients=patients, **arguments)


def test_exported_and_safetensors_networks_equal_the_network(network, exported, slices, tmp_path):
    weights = tmp_path / "network.safetensors"
    save_file(network.state_dict(), weights)

    def build(state):
        made = TinyNetwork().eval()
        made.load_state_dict(state)
        return made

    found = [
        NetworkExtractor.from_export(exported, sha256=sha256(exported), name="tiny", **SETTINGS),
        NetworkExtractor.from_safetensors(weights, sha256=sha256(weights), build=build, name="tiny", **SETTINGS),
    ]
    # the preparation by hand: windows to [0, 1], air around to a square, resized, normalised
    bounds = [(-160, 240), (-1350, 150), (-450, 1050)]
    prepared = np.stack([(slices.clip(*b) - b[0]) / (b[1] - b[0]) for b in bounds], axis=1)
    square = torch.from_numpy(np.pad(prepared, ((0, 0), (0, 0), (0, 0), (6, 6)))).float()
    resized = torch.nn.functional.interpolate(square, size=(32, 32), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = network((resized - 0.5) / 0.25).numpy()
    for extractor, path in zip(found, (exported, weights)):
        np.testing.assert_allclose(extractor(slices), expected, atol=1e-5)
        assert sha256(path) in extractor.name and "tiny" in extractor.name


def test_a_wrong_hash_loads_nothing(exported, tmp_path):
    right = sha256(exported)
    damaged = tmp_path / "damaged.pt2"
    damaged.write_bytes(exported.read_bytes() + b"\0")

    def never(_):
        raise AssertionError("weights of a wrong hash were handed on")

    with pytest.raises(ValueError, match="Nothing of it was loaded"):
        NetworkExtractor.from_export(damaged, sha256=right, name="tiny", **SETTINGS)
    with pytest.raises(ValueError, match="Nothing of it was loaded"):
        NetworkExtractor.from_safetensors(damaged, sha256=right, build=never, name="tiny", **SETTINGS)
    with pytest.raises(ValueError, match="64 hexadecimal"):
        NetworkExtractor.from_export(exported, sha256="", name="tiny", **SETTINGS)


@pytest.mark.parametrize(
    ("where", "message"),
    [("sample_inputs", "[Ww]eights.only"), ("custom_object", "custom objects"), ("weights", "pickled tensors")],
)
def test_no_pickle_is_executed_even_with_the_right_hash(exported, tmp_path, where, message):
    trace, path = tmp_path / "executed", tmp_path / "bomb.pt2"
    payload = io.BytesIO()
    torch.save({"x": Bomb(trace)}, payload)
    with zipfile.ZipFile(exported) as source, zipfile.ZipFile(path, "w") as target:
        for member in source.namelist():
            data = source.read(member)
            if where == "sample_inputs" and "sample_inputs" in member:
                data = payload.getvalue()
            elif where == "weights" and member.endswith("weights_config.json"):
                data = data.replace(b'"use_pickle": false', b'"use_pickle": true')
            elif where == "weights" and member.endswith("weight_0"):
                data = payload.getvalue()
            target.writestr(member, data)
        if where == "custom_object":
            target.writestr("archive/data/constants/custom_obj_0", pickle.dumps(Bomb(trace)))
    with pytest.raises(Exception, match=message):
        NetworkExtractor.from_export(path, sha256=sha256(path), name="bomb", **SETTINGS)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace))).close()  # it would have gone off
    assert trace.exists()


def test_refusals(network, slices):
    with pytest.raises(ValueError, match="16 x 16"):
        FilterBankExtractor()(slices[:, :10])
    with pytest.raises(ValueError, match="2 to 16 orientations"):
        FilterBankExtractor(orientations=1)
    with pytest.raises(ValueError, match="not finite"):
        FilterBankExtractor()(np.full((1, 32, 32), np.nan))
    with pytest.raises(ValueError, match="Each window"):
        NetworkExtractor(network, name="x", sha256="0" * 64, windows=["full"], side_pixels=8, mean=[0, 0], sd=[1])
    with pytest.raises(ValueError, match="slices, features"):
        NetworkExtractor(lambda x: x, name="x", sha256="0" * 64, **SETTINGS)(slices)
    with pytest.raises(ValueError, match="plane"):
        plane_slices(np.zeros((4, 4, 4)), (1, 1, 1), plane="oblique", pixel_mm=1.0, slices=2)
    with pytest.raises(ValueError, match="16 slices"):
        plane_slices(np.zeros((40, 4, 4)), (1, 1, 1), plane="axial", pixel_mm=1.0, slices=17)
