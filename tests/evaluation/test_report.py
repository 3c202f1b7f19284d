"""The report says what the result holds, in words that the numbers allow, and nothing that data could smuggle in."""

import json
import re

import pytest

from diffusers_ct.evaluation import BenchmarkResult, write_report
from diffusers_ct.evaluation.figures import to_png, training_curves
from diffusers_ct.evaluation.figures_style import looks_of
from diffusers_ct.evaluation.report_images import noise_section, plane_section
from diffusers_ct.evaluation.report_parts import Pictures, Table, Text
from diffusers_ct.evaluation.report_tables import NO_DIFFERENCE, group_section, worst_section
from diffusers_ct.evaluation.report_tasks import calibration_section, detectability_section, insertion_section
from tests.evaluation.example_result import DOSES, METHODS, OURS, PATIENTS, example_result

SECTIONS = [
    "worst", "group-1", "group-2", "plane", "noise", "transfer", "detectability", "insertion", "calibration", "few_steps", "bias",
    "downstream", "pictures", "origins",
]  # fmt: skip


@pytest.fixture(scope="module")
def result() -> BenchmarkResult:
    return example_result()


def write(path, result, **words):
    curve = to_png(training_curves([{"step": 1, "train/loss": 1.0}, {"step": 2, "train/loss": 0.5}]))
    picture = [("a picture", "its caption", curve)]
    words = {"title": "T", "summary": ["found it"], "pictures": picture, "subject": OURS, "worst": picture} | words
    return write_report(path, result, **words).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html(result, tmp_path_factory) -> str:
    return write(tmp_path_factory.mktemp("report") / "r.html", result)


def sections_of(html: str) -> list[str]:
    return re.findall(r'<section id="([^"]+)">', html)


def test_every_study_has_its_section_worst_cases_first(html):
    assert sections_of(html) == SECTIONS
    assert html.index("found it") < html.index("not a medical device") < html.index('id="worst"')
    for text in (
        "Recovery: share",
        "Hodges-Lehmann",
        "clipped to -160 to 240 HU, peak 400 HU",
        "What the numbers do not say",
    ):
        assert text in html


def test_it_is_one_small_file_without_scripts_or_network(html):
    assert len(html) < 3e6
    assert "<script" not in html and not re.search(r"""(src|href)=["'](?!data:|#)""", html)
    assert "@import" not in html and "url(" not in html
    alts = re.findall(r'<img[^>]* alt="([^"]*)"', html)
    assert len(alts) == html.count("<img") > 20
    assert all(len(alt) > 10 for alt in alts)
    assert any("Mean frequencies in 1/mm: full dose 0.288" in alt for alt in alts)


def test_a_result_of_an_earlier_version_renders(result, tmp_path):
    rows = [{k: v for k, v in row.items() if k != "intervals"} for row in result.rows]
    (tmp_path / "b.json").write_text(json.dumps({"rows": rows, "facts": {"split": "test"}}))
    old = BenchmarkResult.load(tmp_path / "b.json")
    html = write_report(tmp_path / "r.html", old, title="T", summary=[], pictures=[]).read_text()
    assert sections_of(html) == ["group-1", "group-2", "origins"]
    assert "<img" not in html and "ceiling" in html


@pytest.mark.parametrize("study", example_result().studies)
def test_a_study_alone_brings_its_section_alone(result, tmp_path, study):
    alone = BenchmarkResult(result.rows, studies={study: result.studies[study]})
    html = write_report(tmp_path / "r.html", alone, title="T", summary=[], pictures=[]).read_text()
    added = [key for key in sections_of(html) if not key.startswith(("group", "origins"))]
    expected = {"materials": ["bias"], "noise": ["plane", "noise"]}.get(study, [study])
    assert added == expected


def test_text_from_data_is_escaped(tmp_path):
    nasty = '"><script>alert(1)</script>'
    result = example_result({OURS: nasty})
    result.facts |= {nasty: nasty, "nested": {"k": nasty}}
    tables = {"rows": result.rows, "records": result.records, "comparisons": result.comparisons, **result.studies}
    for name, rows in tables.items():
        rows[:] = [row for row in rows if row.get("group", "dose 10 %") == "dose 10 %"]
        for row in rows:
            row |= {
                key: row[key] + nasty
                for key in ("group", "scan", "patient", "material", "insert", "task")
                if key in row
            }
        assert rows, name
    picture = [(nasty, nasty, to_png(training_curves([{"step": 1, "train/loss": 1.0}])))]
    html = write(tmp_path / "r.html", result, title=nasty, summary=[nasty], subject=nasty, pictures=picture)
    assert "<script" not in html and "&lt;script&gt;" in html
    assert sections_of(html) == [key for key in SECTIONS if key != "group-2"]


def test_a_method_that_the_plane_cannot_show_is_named(result):
    noise = [*result.studies["noise"]]
    noise += [{**row, "method": "other, one sample"} for row in noise if row["method"] == "low dose"]
    made = BenchmarkResult(result.rows, studies={"noise": noise})
    section = plane_section(made, looks_of(["full dose", "low dose", *METHODS], OURS))
    (block,) = (b for b in section.blocks if isinstance(b, Pictures))
    assert [p.caption for p in block.pictures] == [
        "Not drawn, for they have no RMSE in the table or no noise: other, one sample."
    ] * 2
    assert all("nearest texture low dose with 0.00" in p.alt for p in block.pictures)


def cell_of(section, label: str, method: str, column: int):
    return next(row for row in table_of(section, label).rows if row.name == method).cells[column]


def test_doses_outside_those_measured_are_told_apart_and_differences_have_intervals():
    base = {
        "insert": "3 mm, 14 HU", "channels": "c", "n_images": 8, "low": 0.6, "high": 0.9, "auc_bound": 0.93, "auc": 0.8,
        "dose_equivalent": None, "minus_low_dose": 0.02, "minus_low": -0.01, "minus_high": 0.05,
    }  # fmt: skip
    none = dict.fromkeys(("minus_low_dose", "minus_low", "minus_high"))
    rows = [base | none | {"method": "low dose", "dose_fraction": dose} for dose in (0.1, 0.25, 0.5)]
    rows += [
        base | {"method": side or "old", "dose_fraction": 0.25, "dose_equivalent_side": side}
        for side in ("above", "below", None)
    ]
    section = detectability_section(
        BenchmarkResult([], studies={"detectability": rows}), looks_of(["low dose", "above", "below", "old"], None)
    )
    shown = [cell_of(section, "dose equivalence", name, 1).text for name in ("above", "below", "old")]
    assert shown == ["above 50 %", "below 10 %", "–"]
    cell = cell_of(section, "AUC minus low dose", "above", 1)
    assert (cell.text, cell.detail) == ("+0.020", "[-0.010, +0.050], AUC 0.800, of the slab 0.930")
    assert "low dose" not in [row.name for row in table_of(section, "AUC minus low dose").rows]


def test_false_lesions_and_patients_intervals_are_shown(result):
    lesions = insertion_section(result, OURS)
    cell = cell_of(lesions, "false lesions a square centimetre, dose 10 %", OURS, 1)
    assert (cell.text, cell.detail) == ("0.080", "[0.040, 0.120]")
    section = calibration_section(result, looks_of(METHODS, OURS))
    cells = next(b for b in section.blocks if isinstance(b, Table)).rows[0].cells
    assert (cells[2].text, cells[2].detail) == ("86.8 %", "[83, 90]")
    assert cells[6].detail.startswith("[2.60, 2.82] exact: ") and cells[7].detail == "[-0.12, -0.04]"


def test_a_method_that_leaves_no_noise_is_told_without_a_texture(result):
    silent = {"mean_frequency_per_mm": None, "peak_frequency_per_mm": None, "sd_hu": 0.0, "power_hu2_mm2": [0.0] * 32}
    noise = [row | silent if row["method"] == OURS else row for row in result.studies["noise"]]
    made, looks = (
        BenchmarkResult(result.rows, studies={"noise": noise}),
        looks_of(["full dose", "low dose", *METHODS], OURS),
    )
    (block,) = (b for b in plane_section(made, looks).blocks if isinstance(b, Pictures))
    assert all(OURS in picture.caption for picture in block.pictures)
    (row,) = (row for row in table_of(noise_section(made, looks), "noise, dose 25 %").rows if row.name == OURS)
    assert [cell.text for cell in row.cells[:3]] == ["–", "–", "0.0"]


def table_of(section, label: str) -> Table:
    return next(b for b in section.blocks if isinstance(b, Table) and b.label.startswith(label))


def comparison(**values):
    row = {"group": "dose 25 %", "method": OURS, "against": "RED-CNN", "column": "rmse_body_hu", "difference": -1.0,
           "low": -1.5, "high": -0.5, "p": 0.001, "p_holm": 0.01, "n_patients": 12, "test": "sign-flip, exact"}  # fmt: skip
    return row | values


@pytest.mark.parametrize(
    ("values", "word", "detail"),
    [
        ({}, "better", "-1.00 [-1.50, -0.50], p 0.010"),
        ({"difference": 1.0, "low": 0.5, "high": 1.5}, "worse", "+1.00 [+0.50, +1.50], p 0.010"),
        ({"p_holm": 0.05}, NO_DIFFERENCE, "-1.00 [-1.50, -0.50], p 0.050"),
        ({"p_holm": 0.0001}, "better", "-1.00 [-1.50, -0.50], p < 0.001"),
        ({"column": "psnr_full"}, "worse", "-1.00 [-1.50, -0.50], p 0.010"),
        ({"column": "bias_body_hu"}, "lower", "-1.00 [-1.50, -0.50], p 0.010"),
        ({"method": "RED-CNN", "against": OURS}, "worse", "+1.00 [+0.50, +1.50], p 0.010"),
        ({"low": None, "high": None, "p_holm": 1.0}, NO_DIFFERENCE, "-1.00 [–, –], p 1.000"),
    ],
)
def test_comparisons_are_put_in_words(result, values, word, detail):
    made = BenchmarkResult(result.rows, comparisons=[comparison(**values)])
    (row,) = table_of(group_section(made, "dose 25 %", OURS, "g"), "paired").rows
    assert row.name == "RED-CNN"
    assert (row.cells[0].text, row.cells[0].detail) == (word, detail)
    assert row.cells[0].mark == (word if word in ("better", "worse") else "")


@pytest.mark.parametrize(("patients", "told"), [(12, False), (4, True)])
def test_too_few_patients_are_said_to_be_too_few(result, patients, told):
    made = BenchmarkResult(result.rows, comparisons=[comparison(n_patients=patients)])
    texts = [b.lines[0] for b in group_section(made, "dose 25 %", OURS, "g").blocks if isinstance(b, Text)]
    assert any(f"{patients} patients" in text for text in texts)
    # of 4 patients the smallest two-sided p is 2 / 16
    assert any("no p below 0.12 is possible" in text for text in texts) == told


def test_the_best_is_marked_and_ceilings_are_references(result):
    table = table_of(group_section(result, "dose 25 %", OURS, "g"), "image metrics")
    column = table.headings.index("RMSE body [HU]") - 1
    best = [row.name for row in table.rows if row.cells[column].mark == "best"]
    assert best == [min((r for r in result.table("dose 25 %") if r["method"] in METHODS), key=lambda r: r["rmse_body_hu"])["method"]]  # fmt: skip
    assert [row.name for row in table.rows if row.reference] == ["low dose", "perfect image", "ceiling"]


def test_the_worst_scans_are_those_that_gain_least(result):
    section = worst_section(result, OURS, [])
    table = next(b for b in section.blocks if isinstance(b, Table))
    at_10 = [row for row in table.rows if row.cells[0].text == "dose 10 %"]
    # the scan that the example spoils
    assert at_10[0].name == f"scan-{PATIENTS + 1:02d}"
    assert at_10[0].cells[2].mark == "worse"
    for group in DOSES:
        gains = sorted(r["gain_body_db"] for r in result.records if r["method"] == OURS and r["group"] == group)
        shown = [float(row.cells[1].text) for row in table.rows if row.cells[0].text == group]
        assert shown == [pytest.approx(gain, abs=0.005) for gain in gains[:3]]
    text = next(b for b in section.blocks if isinstance(b, Text)).lines[0]
    own = [r for r in result.records if r["method"] == OURS]
    assert f"Of all {len(own)} scans, it is worse than the low dose itself at 1 " in text
    assert worst_section(result, None, []) is None
