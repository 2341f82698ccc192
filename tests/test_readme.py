"""The README's two commands are where .ci/run looks for them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "readme_command.py"
PAGES = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))


def anchor(heading):
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def printed(script, number):
    return subprocess.run(
        [sys.executable, str(script), str(number)], capture_output=True, text=True, check=False
    )


def test_both_commands_are_printed_as_they_are_written():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    main_job, checks = (printed(SCRIPT, number).stdout for number in (1, 2))
    for command in (main_job, checks):
        assert f"```sh\n{command}```" in readme
    assert main_job.rstrip().endswith("sage llm lifetime demo")
    assert checks == "scripts/setup && scripts/check\n"
    for name in ("setup", "check"):
        assert os.access(ROOT / "scripts" / name, os.X_OK)


@pytest.mark.parametrize("readme", ["# Nothing\n", "## Two commands\n\n```sh\none\n```\n\n## On\n"])
def test_a_readme_without_two_commands_is_refused(readme, tmp_path):
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "readme_command.py"
    script.write_bytes(SCRIPT.read_bytes())
    (tmp_path / "README.md").write_text(readme, encoding="utf-8")
    done = printed(script, 1)
    assert done.returncode == 1
    assert "not 2" in done.stderr


def test_ci_runs_both_commands_from_the_readme():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for number in (1, 2):
        assert f"$(python3 scripts/readme_command.py {number})" in ci


def test_the_example_prints_what_the_readme_says():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code, output = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", readme, re.S).groups()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == output


def test_a_newcomer_reads_the_readme_in_five_minutes():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *PAGES])
def test_links_lead_somewhere(page):
    """Files that are there, and headings that are on them."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if heading:
            names = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            assert heading in {anchor(name) for name in names}, link
