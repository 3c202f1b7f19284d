"""What a result says beyond its means: paired comparisons, intervals, and a run that goes on where it stopped."""

import json

import numpy as np
import pytest
from scipy import stats

from diffusers_ct import CTVolume
from diffusers_ct.evaluation import BenchmarkResult, Case, run_benchmark
from diffusers_ct.evaluation.benchmark_result import LOW_DOSE


def case(patient: int, dose: float = 0.25, scan: str = "") -> Case:
    rng = np.random.default_rng(patient)
    full = np.full((1, 48, 48), -1000.0, np.float32)
    full[:, 8:40, 8:40] = 40.0
    low = full + rng.normal(0, 20 + patient, full.shape).astype(np.float32)
    return Case(f"s{patient}{scan}", f"p{patient}", CTVolume.from_array(low, (1.0, 1.0, 1.0)), full, dose, "noise_free")


CASES = [case(k) for k in range(8)]
# errors of known size: restored = truth + c in the whole image
SHIFTS = {f"s{k}": 2.0 + 0.5 * k for k in range(8)}
METHODS = {
    "ours": lambda c: c.full_hu + SHIFTS[c.name],
    "worse by 1": lambda c: c.full_hu + SHIFTS[c.name] + 1.0,
    "as good": lambda c: c.full_hu + SHIFTS[c.name] + (0.25 if int(c.patient_key[1]) % 2 else -0.25),
}


def test_methods_are_compared_on_the_same_patients():
    result = run_benchmark(CASES, METHODS)
    result.compare("ours")
    found = {(c["against"], c["column"]): c for c in result.comparisons}
    worse = found["worse by 1", "rmse_body_hu"]
    # eight equal differences of -1 HU: only the two flips of all signs are as large
    assert (worse["difference"], worse["low"], worse["high"]) == pytest.approx((-1.0, -1.0, -1.0), abs=1e-4)
    assert worse["p"] == 2 / 256 and worse["test"] == "sign-flip, exact" and worse["n_patients"] == 8
    assert worse["p_holm"] > worse["p"]
    same = found["as good", "rmse_body_hu"]
    assert same["low"] < 0 < same["high"] and same["p_holm"] == 1.0
    assert (LOW_DOSE, "psnr_full") in found
    assert not [c for c in result.comparisons if c["against"] == "ours"]


def test_a_method_that_equals_the_reference_is_left_out_where_it_is_infinite():
    result = run_benchmark(CASES, {**METHODS, "truth": lambda c: c.full_hu})
    result.compare("ours", ("psnr_full", "rmse_body_hu"))
    assert {c["column"] for c in result.comparisons if c["against"] == "truth"} == {"rmse_body_hu"}


def test_scans_of_one_patient_count_once():
    twice = [*CASES, *(case(0, scan=f"_{k}") for k in range(5))]
    result = run_benchmark(twice, {"shift": lambda c: c.full_hu + (10.0 if c.name == "s0" else 4.0)})
    means = result.patient_means("dose 25 %", "shift")
    assert means["p0"]["bias_body_hu"] == pytest.approx((10 + 5 * 4) / 6, abs=1e-4)
    row = result.rows[1]
    assert (row["n_patients"], row["n_scans"]) == (8, 13)
    values = [m["bias_body_hu"] for m in means.values()]
    low, high = row["intervals"]["bias_body_hu"]
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 7) * stats.sem(values))


def test_a_stopped_run_goes_on_and_gives_the_same_result(tmp_path):
    journal = tmp_path / "journal.jsonl"
    calls = []

    def counted(c: Case) -> np.ndarray:
        calls.append(c.name)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return c.full_hu + 3.0

    with pytest.raises(KeyboardInterrupt):
        run_benchmark(CASES, {"m": counted}, journal=journal)
    journal.write_text(journal.read_text() + '{"key": ["half a li')  # as kill -9 leaves it
    result = run_benchmark(CASES, {"m": counted}, journal=journal)
    assert calls == [f"s{k}" for k in (0, 1, 2, 3, 4, 4, 5, 6, 7)]
    plain = run_benchmark(CASES, {"m": lambda c: c.full_hu + 3.0})

    def without_times(r: BenchmarkResult) -> list[dict]:
        return [{k: v for k, v in record.items() if k != "seconds_per_slice"} for record in r.records]

    assert without_times(result) == without_times(plain)
    assert result.facts["data_sha256"] == plain.facts["data_sha256"]
    # other images of the same name are done anew
    other = [Case(c.name, c.patient_key, c.low, c.full_hu + 1, c.dose_fraction, c.target) for c in CASES]
    calls.clear()
    calls += ["", "", "", "", ""]
    again = run_benchmark(other, {"m": counted}, journal=journal)
    assert len(calls) == 13 and again.facts["data_sha256"] != result.facts["data_sha256"]


@pytest.mark.parametrize(
    ("cases", "method", "says"),
    [
        ([CASES[0], CASES[0]], lambda c: c.low_hu, "one name"),
        ([CASES[0]], lambda c: c.low_hu[0], "shape"),
        ([CASES[0]], lambda c: c.low_hu * np.nan, "not finite"),
    ],
)
def test_what_cannot_be_judged_is_refused(cases, method, says):
    with pytest.raises(ValueError, match=says):
        run_benchmark(cases, {"m": method})


def test_the_result_with_all_its_parts_survives_json(tmp_path):
    result = run_benchmark(CASES, METHODS)
    result.compare("ours")
    result.studies["noise"] = [{"method": "ours", "frequency_per_mm": [0.0, 0.1]}]
    assert BenchmarkResult.load(result.save(tmp_path / "b.json")) == result
    old = json.loads((tmp_path / "b.json").read_text())
    (tmp_path / "old.json").write_text(json.dumps({"rows": old["rows"], "facts": old["facts"]}))
    assert BenchmarkResult.load(tmp_path / "old.json").rows == result.rows
    with pytest.raises(ValueError, match="no records"):
        BenchmarkResult.load(tmp_path / "old.json").compare("ours")
    facts = result.facts
    assert "-160..240 HU" in facts["conventions"] and len(facts["data_sha256"]) == 64 and facts["device"]
