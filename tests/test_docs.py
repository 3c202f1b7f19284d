"""What the documentation says is so: pages, links, pictures, code, commands, names, messages. Nothing is run, nothing fetched."""

import ast
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
import typer
import yaml

from diffusers_ct.cli import build_app
from diffusers_ct.training import TrainingConfig

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
READ = [ROOT / "README.md", *PAGES, *ROOT.glob("examples/*.md")]
IDS = [str(page.relative_to(ROOT)) for page in READ]
CONFIG = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)
TEXT = {page: page.read_text() for page in READ}
LAUNCHERS = re.compile(r"^(?:export |make |pip |hf |\.venv/bin/diffusers-ct |\.ci/run)")


def nav_pages(entry) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [page for value in (entry if isinstance(entry, list) else entry.values()) for page in nav_pages(value)]


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def slugs(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", TEXT[page], flags=re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", h.lower()).strip()) for h in headings}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT[page], flags=re.MULTILINE | re.DOTALL)


def test_every_page_is_in_the_navigation_and_there():
    assert sorted(nav_pages(CONFIG["nav"])) == [str(page.relative_to(DOCS)) for page in PAGES]
    assert CONFIG["theme"]["font"] == "false", "nothing is fetched from other hosts"


def test_the_readme_is_short_and_leads_to_the_pages():
    text = TEXT[ROOT / "README.md"]
    assert len(text.splitlines()) <= 130
    assert {"docs/quickstart.md", "docs/measurements.md", "docs/methods.md", "docs/limits.md"} <= set(
        re.findall(r"\]\((docs/[\w/]+\.md)\)", text)
    )
    assert "not a medical device" in text


@pytest.mark.parametrize("page", READ, ids=IDS)
def test_links_and_pictures_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(TEXT[page])):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} is not there"
        if anchor and file in TEXT:
            assert anchor in slugs(file), f"{target}: no such heading"
        assert path.endswith(".png") or DOCS not in page.parents or DOCS in file.parents, f"{target} leaves the site"


def test_pictures_are_those_that_the_script_draws_and_small():
    tree = ast.parse((DOCS / "draw_figures.py").read_text())
    (names,) = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "FIGURES"]
    drawn = {f"{name.id}.png" for name in names.elts}
    files = list((DOCS / "images").iterdir())
    assert {file.name for file in files} == drawn
    assert max(file.stat().st_size for file in files) < 150e3 and sum(file.stat().st_size for file in files) < 800e3
    shown = set(re.findall(r"images/([\w]+\.png)", "".join(TEXT[page] for page in PAGES)))
    assert shown == drawn


@pytest.mark.slow
def test_the_script_draws_the_pictures_that_are_there(tmp_path):
    from PIL import Image, ImageChops, ImageStat

    script = [sys.executable, str(DOCS / "draw_figures.py"), "--output_dir", str(tmp_path)]
    subprocess.run(script, check=True, cwd=ROOT, timeout=600)
    for file in (DOCS / "images").iterdir():
        old, new = (Image.open(folder / file.name).convert("L") for folder in (file.parent, tmp_path))
        assert old.size == new.size, file.name
        assert ImageStat.Stat(ImageChops.difference(old, new)).mean[0] < 4.0, file.name


@pytest.mark.parametrize("page", READ, ids=IDS)
def test_code_compiles_and_its_names_of_the_package_exist(page):
    for code in blocks(page, "python"):
        tree = ast.parse(code)  # SyntaxError shows the line
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "diffusers_ct":
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


def commands(page: Path) -> list[list[str]]:
    """The command lines of a page's shell blocks, and those in its prose that begin with the program."""
    found = []
    for block in blocks(page, "bash"):
        found += block.replace("\\\n", " ").splitlines()
    prose = re.sub(r"^```.*?^```", "", TEXT[page], flags=re.MULTILINE | re.DOTALL)
    found += [
        line for line in re.findall(r"`([^`\n]+)`", prose)
        if re.match(r"(diffusers-ct|accelerate launch|python examples/) ?\S+ .*-", line)
    ]  # fmt: skip
    split = (shlex.split(line, comments=True) for line in found if "..." not in line and "->" not in line)
    return [words for words in split if words]


@cache
def flags_of_commands() -> dict[str, set[str]]:
    """Command -> its flags."""
    app = typer.main.get_command(build_app())
    return {
        name: {flag for p in command.params for flag in (*p.opts, *p.secondary_opts) if flag.startswith("-")}
        | {"--help"}
        for name, command in app.commands.items()
    }


@cache
def flags_of_example(path: str) -> set[str]:
    """Flags that an example adds itself, takes from `TrainingConfig`, or hands to another example that it imports."""
    text = (ROOT / path).read_text()
    own = set(re.findall(r"""add_argument\(\s*["'](--\w+)["']""", text)) | {"--help"}
    if "TrainingConfig.add_arguments" in text:
        own |= {f"--{field.name}" for field in fields(TrainingConfig)}
    for other in re.findall(r"^from (\w+) import main", text, flags=re.MULTILINE):
        own |= flags_of_example(f"examples/{other}.py")
    return own


@pytest.mark.parametrize("page", READ, ids=IDS)
def test_commands_and_their_flags_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for words in commands(page):
        line = " ".join(words)
        if words[0] == "make":
            assert words[1] in targets, line
        words = [Path(words[0]).name, *words[1:]]
        if "diffusers_ct.cli" in words:
            words = ["diffusers-ct", *words[words.index("diffusers_ct.cli") + 1 :]]
        given = {word.split("=")[0] for word in words if re.match(r"-{1,2}[a-z]", word)}
        if words[0] == "diffusers-ct":
            if words[1] not in ("--help", "--version"):
                assert words[1] in flags_of_commands(), line
                assert given <= flags_of_commands()[words[1]], f"{line}: {given - flags_of_commands()[words[1]]}"
        elif example := next((word for word in words if word.startswith("examples/") and word.endswith(".py")), None):
            assert (ROOT / example).is_file(), line
            behind = {w.split("=")[0] for w in words[words.index(example) :] if w.startswith("--")}
            assert behind <= flags_of_example(example), f"{line}: {behind - flags_of_example(example)}"
        else:
            assert LAUNCHERS.match(line), f"a command that this test does not know: {line}"
        for word in words:
            if word.startswith(("examples/", "docs/")):
                assert (ROOT / word).exists(), line


PUBLIC = ("", ".io", ".physics", ".data", ".models", ".schedulers", ".guidance", ".pipelines", ".training", ".metrics",
          ".evaluation", ".hub")  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_in_the_reference(name):
    pages = "".join(TEXT[page] for page in PAGES if page.parent.name == "reference")
    listed = set(re.findall(r"^ +- (\w+)$", pages, flags=re.MULTILINE)) | set(
        re.findall(r"`(?:diffusers_ct\.)?(\w+)`", pages)
    )
    missing = set(importlib.import_module(f"diffusers_ct{name}").__all__) - listed
    assert not missing, f"add to a page of docs/reference: {sorted(missing)}"


def test_the_reference_names_nothing_that_is_not_there():
    for page in (p for p in PAGES if p.parent.name == "reference"):
        for module, options in re.findall(r"^::: (\S+)\n((?: .*\n)*)", TEXT[page], flags=re.MULTILINE):
            for name in re.findall(r"^ +- (\w+)$", options, flags=re.MULTILINE):
                assert hasattr(importlib.import_module(module), name), f"{module}.{name} in {page.name}"


def test_files_of_the_method_index_exist():
    rows = [row for row in TEXT[DOCS / "methods.md"].splitlines() if row.startswith("| ")][1:]
    assert len(rows) >= 35
    for row in rows:
        what, paper, files, tests = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert what and paper
        for path in re.findall(r"`([^`]+)`", files):
            folder = ROOT if path.startswith("examples/") else ROOT / "diffusers_ct"
            assert list(folder.glob(path.rstrip("/"))), path
        named = re.findall(r"`([^`]+)`", tests)
        assert named and all(list(ROOT.glob(path.rstrip("/"))) for path in named), row


def files_named_in(text: str) -> set[str]:
    return set(re.findall(r"`((?:examples|tests|docs|model_cards|\.ci)/[\w./-]+\.\w+)(?:[ `])", text))


@pytest.mark.parametrize("page", READ, ids=IDS)
def test_files_that_are_named_exist(page):
    for path in files_named_in(TEXT[page]):
        assert (ROOT / path).exists(), path


@cache
def messages_of_the_package() -> list[str]:
    """All texts of the package's code, with … where a value is filled in."""
    found = []
    for file in [*ROOT.glob("diffusers_ct/**/*.py"), *ROOT.glob("examples/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.append("".join(p.value if isinstance(p, ast.Constant) else "…" for p in node.values))
    return found


def test_messages_that_are_explained_are_those_of_the_code():
    quoted = re.findall(r"^> `(.+)`$", TEXT[DOCS / "troubleshooting.md"], flags=re.MULTILINE)
    assert len(quoted) >= 30 and len(set(quoted)) == len(quoted)
    known = messages_of_the_package()
    missing = [text for text in quoted if not any(text in one for one in known)]
    assert not missing, missing


def test_questions_of_the_field_are_answered():
    answered = re.findall(r"^## .+\n\n(?!##)\S", TEXT[DOCS / "faq.md"], flags=re.MULTILINE)
    assert len(answered) >= 20 and len(answered) == TEXT[DOCS / "faq.md"].count("\n## ")


def test_nothing_in_the_documentation_names_a_machine():
    for page in (*PAGES, ROOT / "mkdocs.yml", DOCS / "draw_figures.py"):
        assert not re.search(r"/work/|/root/|pypi\.org|pythonhosted", page.read_text()), page


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs mkdocs: pip install 'diffusers-ct[docs]'")
def test_the_site_is_built_strictly_and_fetches_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=280, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for page in nav_pages(CONFIG["nav"]):
        html = (tmp_path / page).with_suffix(".html").read_text()
        assert not re.findall(r"""<(?:script|img|iframe)[^>]+src=["']https?://""", html), page
        assert not re.findall(r"""<link[^>]+rel=["']stylesheet["'][^>]+href=["']https?://""", html), page
    assert 'id="diffusers_ct.metrics.image.psnr_pooled"' in (tmp_path / "reference" / "metrics.html").read_text()
