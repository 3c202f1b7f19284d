"""`report.html`: one file with tables, pictures and curves; needs no network and reads on a phone."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from .benchmark import CEILING, COLUMNS, LOW_DOSE, PERFECT, BenchmarkResult, format_value

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1100px; padding: 1rem; color: #1a1a1a; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; white-space: nowrap; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
tr.reference td { color: #777; font-style: italic; } td.best { font-weight: 700; }
img { max-width: 100%; height: auto; } figure { margin: 1rem 0; } figcaption { font-size: .9rem; color: #555; }
.warning { background: #fff4e0; border-left: 4px solid #e08a00; padding: .5rem 1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .85rem; }
dd { margin: 0; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { body, th:first-child, td:first-child { background: #121212; color: #eee; }
.warning { background: #3a2c10; } }
</style></head><body>
<h1>{{ title }}</h1>
<p class="warning">For research use, not a medical device. Numbers hold for the data and conventions named here alone.</p>
{% for text in summary %}<p>{{ text }}</p>{% endfor %}
{% for group in groups %}
<h2>{{ group.name }}</h2>
<p>{{ group.count }}. Bold: best of the methods. <em>{{ low_dose }}</em>{% if group.ceiling %}, <em>{{ perfect }}</em> and
<em>{{ ceiling }}</em>{% endif %} are references.</p>
<div class="scroll"><table><thead><tr><th>method</th>{% for c in group.headings %}<th>{{ c }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in group.rows %}<tr{% if row.reference %} class="reference"{% endif %}><td>{{ row.method }}</td>
{% for cell in row.cells %}<td{% if cell.best %} class="best"{% endif %}>{{ cell.text }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% endfor %}
{% for picture in pictures %}<figure><h2>{{ picture.title }}</h2>
<img alt="{{ picture.title }}" src="data:image/png;base64,{{ picture.data }}"><figcaption>{{ picture.caption }}</figcaption>
</figure>{% endfor %}
<h2>How this was made</h2><dl>{% for key, value in facts %}<dt>{{ key }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
</body></html>
"""


def write_report(
    path: str | Path,
    result: BenchmarkResult,
    *,
    title: str,
    summary: Sequence[str],
    pictures: Sequence[tuple[str, str, bytes]],
) -> Path:
    """Writes the report.

    Args:
        path: of the HTML file; replaced whole.
        result: the tables and facts.
        title: heading.
        summary: paragraphs.
        pictures: (title, caption, PNG).
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    html = environment.from_string(_TEMPLATE).render(
        title=title,
        summary=summary,
        groups=[_group(result, name) for name in result.groups],
        pictures=[{"title": t, "caption": c, "data": base64.b64encode(png).decode("ascii")} for t, c, png in pictures],
        facts=sorted(result.facts.items()),
        low_dose=LOW_DOSE,
        perfect=PERFECT,
        ceiling=CEILING,
    )
    path = Path(path)
    partial = path.with_suffix(".partial")
    partial.write_text(html, encoding="utf-8")
    partial.replace(path)
    return path


def _group(result: BenchmarkResult, name: str) -> Mapping[str, Any]:
    columns = result.shown_columns(name)
    best = {column: result.best(name, column) for column in columns}
    rows = []
    for row in result.table(name):
        reference = row["method"] in (LOW_DOSE, PERFECT, CEILING)
        cells = [
            {
                "text": format_value(c, row.get(c)),
                "best": not reference and best[c] is not None and row.get(c) == best[c] and c != "seconds_per_slice",
            }
            for c in columns
        ]
        rows.append({"method": row["method"], "cells": cells, "reference": reference})
    first = result.table(name)[0]
    return {
        "name": name,
        "count": f"{first['n_patients']} patients, {first['n_scans']} scans, {first['n_slices']} slices",
        "headings": [COLUMNS[c][0] for c in columns],
        "rows": rows,
        "ceiling": any(row["method"] == CEILING for row in result.table(name)),
    }
