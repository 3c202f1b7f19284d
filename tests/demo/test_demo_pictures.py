"""Pictures in closed form: what grey or colour a HU has, and which way up a slice lies."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from diffusers_ct import CTVolume
from diffusers_ct.demo.pictures import (
    ZERO,
    Upright,
    data_uri,
    difference,
    difference_palette,
    gradient,
    grey,
    heat_palette,
    uncertainty,
)
from diffusers_ct.demo.views import WINDOWS, slice_view, top_of
from diffusers_ct.hounsfield import WINDOWS_HU


def test_a_window_maps_its_bounds_to_black_and_white_and_is_linear_between():
    hu = np.array([[-2000.0, -160.0, 40.0, 240.0, 3000.0]])
    assert grey(hu, "soft_tissue").tolist() == [[0, 0, 128, 255, 255]]  # 127.5 is rounded to even
    ramp = np.arange(256.0)[None]
    assert grey(ramp * 2.0 - 100.0, (-100.0, 410.0)).tolist() == [list(range(256))]
    assert set(WINDOWS.values()) == set(WINDOWS_HU)


def test_the_difference_is_white_at_none_blue_below_and_red_above():
    low = np.zeros((1, 6))
    change = np.array([[-500.0, -100.0, 0.0, 50.0, 100.0, 500.0]])
    assert difference(low + change, low, 100.0).tolist() == [[1, 1, ZERO, ZERO + 64, 255, 255]]
    palette = difference_palette()
    assert palette[ZERO].tolist() == [255, 255, 255]
    assert palette[1, 2] > palette[1, 0] and palette[255, 0] > palette[255, 2]
    for steps in (1, 40, 127):  # equally far from white on both sides
        assert (
            ZERO - difference(-low - steps, low, 127.0)[0, 0]
            == steps
            == difference(low + steps, low, 127.0)[0, 0] - ZERO
        )


def test_uncertainty_runs_from_black_to_pale_and_gets_brighter_all_the_way():
    assert uncertainty(np.array([[0.0, 10.0, 20.0, 90.0]]), 20.0).tolist() == [[0, 128, 255, 255]]
    luminance = heat_palette().astype(float) @ [0.2126, 0.7152, 0.0722]
    assert luminance[0] == 0.0 and (np.diff(luminance) >= 0).all() and luminance[-1] > 240
    sd = np.full((4, 10, 10), 7.0)
    sd[:, 0, 0] = 1000.0  # one voxel in a hundred
    assert top_of(sd) == pytest.approx(1000.0) and top_of(np.zeros((2, 4, 4))) == 1.0
    sd[:, 0, 0] = 7.0
    assert top_of(sd) == 7.0


def decode(uri: str) -> Image.Image:
    kind, _, data = uri.partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_a_picture_holds_its_indices_and_colours_without_loss():
    indices = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)
    assert np.array_equal(np.asarray(decode(data_uri(indices[::-1, ::-1]))), indices[::-1, ::-1])
    palette = heat_palette()
    assert np.array_equal(np.asarray(decode(data_uri(indices, palette)).convert("RGB")), palette[indices])
    css = gradient(difference_palette(), first=1)
    assert css.startswith("linear-gradient(to right, rgb(16, 64, 150), ") and css.endswith(", rgb(165, 10, 30))")


# columns run to, rows run to -> where the patient's sides are
@pytest.mark.parametrize(
    ("across", "down", "turned", "marks"),
    [
        ((1, 0, 0), (0, 1, 0), [[0, 1], [2, 3]], "RLAP"),  # axial as scanners write it
        ((-1, 0, 0), (0, -1, 0), [[3, 2], [1, 0]], "RLAP"),  # axial as in a NIfTI of RAS
        ((0, 1, 0), (1, 0, 0), [[0, 2], [1, 3]], "RLAP"),  # axial, rows and columns exchanged
        ((1, 0, 0), (0, 0, -1), [[0, 1], [2, 3]], "RLHF"),  # coronal
        ((1, 0, 0), (0, 0, 1), [[2, 3], [0, 1]], "RLHF"),  # coronal, from the feet
        ((0, 1, 0), (0, 0, -1), [[0, 1], [2, 3]], "APHF"),  # sagittal
        ((0, -1, 0), (0, 0, -1), [[1, 0], [3, 2]], "APHF"),
        ((0.95, 0.3, 0), (-0.3, 0.95, 0), [[0, 1], [2, 3]], "RLAP"),  # oblique
    ],
)
def test_slices_lie_as_radiologists_look_at_them(across, down, turned, marks):
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = np.multiply(across, 0.5), np.multiply(down, 0.8)
    affine[:3, 2] = np.cross(across, down)
    upright = Upright.of(affine)
    assert upright.turn(np.arange(4).reshape(2, 2)).tolist() == turned
    assert "".join(upright.marks) == marks
    wide = upright.aspect((1, 10, 40), (1.0, 0.8, 0.5))
    assert wide == pytest.approx(8.0 / 20.0 if upright.transpose else 20.0 / 8.0)


def test_a_view_shows_the_slice_that_was_asked_for():
    hu = np.random.default_rng(0).normal(0, 50, (4, 6, 8)).astype(np.float32)
    scan = CTVolume.from_array(hu, (3.0, 1.0, 1.0))
    asked = {"window": "lung", "difference_hu": 50.0, "low_name": "the scan"}
    view = slice_view(scan, 2, **asked)
    assert np.array_equal(np.asarray(decode(view["before"])), grey(hu[1], "lung"))
    assert view["after"] == view["difference"] == view["uncertainty"] == ""
    assert view["place"] == "slice 2 of 4, z = -1.5 mm" and view["aspect"] == pytest.approx(8 / 6)
    view = slice_view(scan, 9, **asked, restored_hu=hu + 25.0, uncertainty_hu=np.abs(hu), uncertainty_top_hu=100.0)
    assert view["place"].startswith("slice 4 of 4")
    assert np.array_equal(np.asarray(decode(view["after"])), grey(hu[3] + 25.0, "lung"))
    assert set(np.unique(np.asarray(decode(view["difference"])))) <= {ZERO + 63, ZERO + 64}
    assert np.array_equal(np.asarray(decode(view["uncertainty"])), uncertainty(np.abs(hu[3]), 100.0))
    assert view["difference_ends"] == ["-50 HU", "0", "+50 HU"] and view["uncertainty_ends"][2] == "100 HU"
