"""The report's tables of image metrics: worst scans, methods by group, and what paired comparisons say of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .benchmark_result import CEILING, COLUMNS, LOW_DOSE, PERFECT, BenchmarkResult, format_value
from .report_parts import Block, Cell, Heading, Picture, Pictures, Row, Section, Table, Text, interval, number

REFERENCES = (LOW_DOSE, PERFECT, CEILING)
SIGNIFICANT = 0.05
WORST_SCANS = 3
NO_DIFFERENCE = "no difference seen"


def worst_section(result: BenchmarkResult, subject: str | None, pictures: Sequence[Picture]) -> Section | None:
    """The scans of each group at which the method judged gains least over the low dose."""
    own = [record for record in result.records if record["method"] == subject]
    blocks: list[Block] = []
    if own:
        others: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for record in result.records:
            if record["method"] != subject:
                others.setdefault((record["group"], record["scan"]), []).append(record)
        rows = [
            _worst_row(record, others.get((record["group"], record["scan"]), []))
            for group in dict.fromkeys(record["group"] for record in own)
            for record in sorted((r for r in own if r["group"] == group), key=_badness, reverse=True)[:WORST_SCANS]
        ]
        blocks.append(Text([_worst_sentence(own, others, str(subject))]))
        headings = (
            "scan", "group", "gain body [dB]", "RMSE body [HU]", "of the low dose", "best other there", "bias body [HU]",
            "SSIM soft", "patient", "slices",
        )  # fmt: skip
        blocks.append(Table(f"scans at which {subject} is worst", headings, rows))
    if pictures:
        blocks.append(Pictures(pictures))
    return Section("worst", "worst cases", "Worst cases first", blocks) if blocks else None


def _badness(record: Mapping[str, Any]) -> tuple[float, float]:
    gain, error = record.get("gain_body_db"), record.get("rmse_body_hu")
    return (float("-inf") if gain is None else -gain), (0.0 if error is None else error)


def _worst_row(record: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> Row:
    low = next((r for r in others if r["method"] == LOW_DOSE), {})
    rivals = [r for r in others if r["method"] not in REFERENCES and r.get("rmse_body_hu") is not None]
    best = min(rivals, key=lambda r: r["rmse_body_hu"], default=None)
    error = record.get("rmse_body_hu")
    ahead = best is not None and error is not None and best["rmse_body_hu"] < error
    cells = [
        Cell(record["group"]),
        Cell(format_value("gain_body_db", record.get("gain_body_db"))),
        Cell(format_value("rmse_body_hu", error), mark="worse" if ahead else ""),
        Cell(format_value("rmse_body_hu", low.get("rmse_body_hu"))),
        Cell("–") if best is None else Cell(format_value("rmse_body_hu", best["rmse_body_hu"]), best["method"]),
        Cell(format_value("bias_body_hu", record.get("bias_body_hu"))),
        Cell(format_value("ssim_soft", record.get("ssim_soft"))),
        Cell(str(record["patient"])),
        Cell(str(record["n_slices"])),
    ]
    return Row(str(record["scan"]), cells)


def _worst_sentence(
    own: Sequence[Mapping[str, Any]], others: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]], subject: str
) -> str:
    gains = [r["gain_body_db"] for r in own if r.get("gain_body_db") is not None]
    beaten = 0
    for record in own:
        rivals = [
            r["rmse_body_hu"]
            for r in others.get((record["group"], record["scan"]), [])
            if r["method"] not in REFERENCES and r.get("rmse_body_hu") is not None
        ]
        error = record.get("rmse_body_hu")
        beaten += bool(rivals) and error is not None and min(rivals) < error
    return (
        f"Of each group the {WORST_SCANS} scans at which {subject} gains least over the low dose. Of all {len(own)} scans, "
        f"it is worse than the low dose itself at {sum(gain < 0.0 for gain in gains)} and has a larger RMSE than the best other "
        f"method there at {beaten}."
    )


def group_section(result: BenchmarkResult, group: str, subject: str | None, key: str) -> Section:
    """The table of a group, and the paired comparisons below it."""
    columns = result.shown_columns(group)
    best = {column: result.best(group, column) for column in columns}
    rows = []
    for row in result.table(group):
        reference = row["method"] in REFERENCES
        intervals = row.get("intervals", {})  # results of earlier versions have none
        cells = [
            Cell(
                format_value(c, row.get(c)),
                _ends(c, intervals[c]) if c in intervals else "",
                "best" if _is_best(row, c, best[c], reference) else "",
            )
            for c in columns
        ]
        rows.append(Row(row["method"], cells, reference))
    first = result.table(group)[0]
    count = f"{first['n_patients']} patients, {first['n_scans']} scans, {first['n_slices']} slices"
    ceiling = any(row["method"] == CEILING for row in result.table(group))
    references = f"{LOW_DOSE}, {PERFECT} and {CEILING} are references" if ceiling else f"{LOW_DOSE} is a reference"
    bounded = any(row.get("intervals") for row in result.table(group))
    brackets = (
        " In brackets: 95 % interval of the mean over patients; paired comparisons below are sharper."
        if bounded
        else ""
    )
    blocks: list[Block] = [
        Text([f"{count}. Bold: best of the methods. Greyed: {references}.{brackets}"]),
        Table(f"image metrics, {group}", ["method", *(COLUMNS[c][0] for c in columns)], rows),
        *_comparison_blocks(result, group, subject),
    ]
    return Section(key, group, group, blocks)


def _ends(column: str, ends: Sequence[float]) -> str:
    return f"[{format_value(column, ends[0])}, {format_value(column, ends[1])}]"


def _is_best(row: Mapping[str, Any], column: str, best: float | None, reference: bool) -> bool:
    return not reference and best is not None and row.get(column) == best and column != "seconds_per_slice"


@dataclass(frozen=True)
class _Compared:
    """One method against another in one column, seen from `method`."""

    method: str
    other: str
    column: str
    difference: float
    low: float | None
    high: float | None
    p_holm: float | None
    n_patients: int
    test: str

    @classmethod
    def of(cls, row: Mapping[str, Any], subject: str | None) -> "_Compared":
        turned = row["against"] == subject
        sign = -1.0 if turned else 1.0
        method, other = (row["against"], row["method"]) if turned else (row["method"], row["against"])
        ends = (row["high"], row["low"]) if turned else (row["low"], row["high"])
        low, high = (None if end is None else sign * end for end in ends)
        return cls(method, other, row["column"], sign * row["difference"], low, high, row["p_holm"],
                   row["n_patients"], row["test"])  # fmt: skip

    def word(self) -> str:
        """What may be said: a direction only where the p-value after Holm is below 5 %."""
        if self.p_holm is None or not self.p_holm < SIGNIFICANT or self.difference == 0.0:
            return NO_DIFFERENCE
        more = COLUMNS[self.column][1]
        if more is None:
            return "higher" if self.difference > 0.0 else "lower"
        return "better" if (self.difference > 0.0) == more else "worse"

    def cell(self) -> Cell:
        word = self.word()
        digits = 4 if self.column.startswith(("ssim", "seconds")) else 3 if self.column == "ceiling_share" else 2
        detail = f"{number(self.difference, f'+.{digits}f')} {interval(self.low, self.high, f'+.{digits}f')}, {_p(self.p_holm)}"
        return Cell(word, detail, word if word in ("better", "worse") else "")


def _p(value: float | None) -> str:
    return "p –" if value is None else "p < 0.001" if value < 0.001 else f"p {value:.3f}"


def _comparison_blocks(result: BenchmarkResult, group: str, subject: str | None) -> list[Block]:
    compared = [_Compared.of(row, subject) for row in result.comparisons if row["group"] == group]
    if any(c.method == subject for c in compared):
        compared = [c for c in compared if c.method == subject]
    blocks: list[Block] = []
    for method in dict.fromkeys(c.method for c in compared):
        own = [c for c in compared if c.method == method]
        columns = [c for c in COLUMNS if any(o.column == c for o in own)]
        cells = {(c.other, c.column): c.cell() for c in own}
        rows = [
            Row(other, [cells.get((other, column), Cell("–")) for column in columns])
            for other in dict.fromkeys(c.other for c in own)
        ]
        blocks += [
            Heading(f"{method} against each other method"),
            Text([_comparison_note(own)]),
            Table(
                f"paired comparisons of {method}, {group}", ["against", *(COLUMNS[c][0] for c in columns)], rows
            ),
        ]  # fmt: skip
    return blocks


def _comparison_note(compared: Sequence[_Compared]) -> str:
    patients = sorted({c.n_patients for c in compared})
    count = f"{patients[0]}" if len(patients) == 1 else f"{patients[0]} to {patients[-1]}"
    note = (
        f"Paired by patient, {count} patients; {', '.join(dict.fromkeys(c.test for c in compared))} test. Each cell: the "
        "difference (Hodges-Lehmann, this method minus the other), its 95 % interval (none below 6 patients), and p after Holm's correction. A direction "
        f"is named where that p is below {SIGNIFICANT}; “{NO_DIFFERENCE}” is not “equal”."
    )
    exact = [c.n_patients for c in compared if c.test.startswith("sign-flip")]
    if exact:
        # Two of the 2^n patterns of signs are as extreme as all alike; Holm multiplies the smallest p by their number.
        smallest = 2.0 / 2.0 ** max(exact)
        corrected = min(smallest * len(compared), 1.0)
        if corrected >= SIGNIFICANT:
            note += (
                f" With {max(exact)} patients no p below {smallest:.2g} is possible, and none below {corrected:.2g} after correction "
                f"for {len(compared)} comparisons: so few patients cannot show any difference here."
            )
    return note
