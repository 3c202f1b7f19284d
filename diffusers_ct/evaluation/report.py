"""`report.html`: one file with findings, tables, curves and pictures; needs no network and reads on a phone."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import jinja2

from .benchmark_result import BenchmarkResult
from .figures_style import Look, looks_of
from .report_few_steps import few_steps_section
from .report_images import materials_section, noise_section, plane_section, transfer_section
from .report_origins import origins_section
from .report_parts import Picture, Pictures, Section
from .report_tables import group_section, worst_section
from .report_tasks import calibration_section, detectability_section, downstream_section, insertion_section


def write_report(
    path: str | Path,
    result: BenchmarkResult,
    *,
    title: str,
    summary: Sequence[str],
    pictures: Sequence[tuple[str, str, bytes]],
    subject: str | None = None,
    worst: Sequence[tuple[str, str, bytes]] = (),
) -> Path:
    """Writes the report; a section is there only where the result holds what it shows.

    Args:
        path: of the HTML file; replaced whole.
        result: the tables, studies and facts.
        title: heading.
        summary: what was found, a paragraph each.
        pictures: (title, caption, PNG).
        subject: the method that is judged: its worst scans come first, and the comparisons are seen from it.
        worst: (title, caption, PNG) of the scans at which it is worst.

    Raises:
        ImportError: where there are studies to draw and matplotlib is not installed.
    """
    source = files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    sections = report_sections(result, subject=subject, pictures=_pictures(pictures), worst=_pictures(worst))
    html = environment.from_string(source).render(title=title, summary=summary, sections=sections)
    path = Path(path)
    partial = path.with_suffix(".partial")
    partial.write_text(html, encoding="utf-8")
    partial.replace(path)
    return path


def report_sections(
    result: BenchmarkResult, *, subject: str | None, pictures: Sequence[Picture], worst: Sequence[Picture]
) -> list[Section]:
    """The sections in their order, worst cases first."""
    looks = _looks(result, subject)
    sections = [
        worst_section(result, subject, worst),
        *(group_section(result, group, subject, f"group-{k + 1}") for k, group in enumerate(result.groups)),
        plane_section(result, looks),
        noise_section(result, looks),
        transfer_section(result, looks),
        detectability_section(result, looks),
        insertion_section(result, subject),
        calibration_section(result, looks),
        few_steps_section(result, looks),
        materials_section(result),
        downstream_section(result),
        Section("pictures", "pictures", "Pictures", [Pictures(pictures)]) if pictures else None,
        origins_section(result),
    ]
    return [section for section in sections if section is not None]


def _looks(result: BenchmarkResult, subject: str | None) -> dict[str, Look]:
    """One look for each method of the tables and of all studies."""
    studied = [row["method"] for rows in result.studies.values() for row in rows if "method" in row]
    return looks_of([*(row["method"] for row in result.rows), *studied], subject)


def _pictures(pictures: Sequence[tuple[str, str, bytes]]) -> list[Picture]:
    return [Picture(title, caption, f"{title}. {caption}", png) for title, caption, png in pictures]
