"""Settings of the adaptive schedule that its tests share."""

import torch

NAN = float("nan")
BASE = {
    "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing", "clip_sample": False,
}  # fmt: skip
TABLE = {
    "shift_conditions": ["dose_fraction", "slice_thickness_mm"],
    "shift_knot_counts": [3, 2],
    "shift_knots": [0.05, 0.25, 1.0, 1.0, 5.0],
    "shift_values": [-3.0, -1.0, 0.0, -0.5, 0.5],
}
SCALED = {**TABLE, "shift_log_scales": [0.3, 0.1, 0.0, 0.0, 0.0]}


def dose(*values: float) -> dict[str, torch.Tensor]:
    return {"dose_fraction": torch.tensor(values)}
