"""What GitHub and readers of the repository look for is there, agrees with the package, and names no machine."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def read_yaml(path: Path) -> dict:
    return yaml.load(path.read_text(), yaml.BaseLoader)  # so that "on" stays a word


def test_the_citation_is_of_this_version():
    citation = read_yaml(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["title"].startswith("diffusers-ct")
    assert citation["version"] == VERSION and citation["license"] == "Apache-2.0"
    assert all("name" in author or "family-names" in author for author in citation["authors"])


def test_the_changelog_begins_with_this_version():
    headings = re.findall(r"^## (\S+)", (GITHUB / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == VERSION


def test_contributing_names_commands_and_files_that_exist():
    text = (GITHUB / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", text))
    assert named >= {"install", "test", "lint"} and named <= targets
    for path in re.findall(r"`((?:tests|examples|\.ci)/[\w./]+|constraints\.txt)`", text):
        assert (ROOT / path).is_file(), path
    assert "Never attach patient data" in text and "attach no patient data" in (GITHUB / "SECURITY.md").read_text()


def test_workflows_run_what_runs_here_with_pinned_actions_and_no_rights():
    workflows = {path.name: read_yaml(path) for path in (GITHUB / "workflows").glob("*.yml")}
    runs = {
        name: [s["run"] for job in w["jobs"].values() for s in job["steps"] if "run" in s]
        for name, w in workflows.items()
    }
    assert runs == {"ci.yml": [".ci/run"], "docs.yml": ["make docs"], "slow.yml": ["make test-slow"]}
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100
    for workflow in workflows.values():
        assert workflow["permissions"] == {"contents": "read"}
        for job in workflow["jobs"].values():
            assert int(job["timeout-minutes"]) <= 360
            uses = [step["uses"] for step in job["steps"] if "uses" in step]
            assert uses and all(re.fullmatch(r"actions/[\w-]+@v\d+\.\d+\.\d+", use) for use in uses)
    assert set(workflows["ci.yml"]["on"]) == {"push", "pull_request"}


def test_issue_templates_ask_that_no_patient_data_be_sent():
    bug = read_yaml(GITHUB / "ISSUE_TEMPLATE" / "bug_report.yml")
    required = [item["id"] for item in bug["body"] if item.get("validations", {}).get("required") == "true"]
    assert required == ["command", "seen", "versions"]
    (box,) = [item for item in bug["body"] if item["type"] == "checkboxes"]
    assert box["attributes"]["options"][0]["required"] == "true" and "patient data" in str(box)
    for path in (GITHUB / "ISSUE_TEMPLATE").glob("*_re*.yml"):
        template = read_yaml(path)
        ids = [item["id"] for item in template["body"] if "id" in item]
        assert template["name"] and template["description"] and len(ids) == len(set(ids)) >= 3


def test_no_machine_path_or_registry():
    files = [ROOT / "CITATION.cff", ROOT / ".ci" / "run", *(p for p in GITHUB.rglob("*") if p.is_file())]
    assert len(files) > 8
    for file in files:
        assert not re.search(r"/work/|/root/|pypi\.org|pythonhosted|whl/", file.read_text()), file
