"""The worked example of docs/testing-your-app.md finds a leak; its workflow, and ours, are what they should be.

That the example passes as it stands there is proven with the other pages, in tests/docs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "testing-your-app.md").read_text()


def example(directory: Path) -> None:
    """The files of the example, as the page shows them."""
    files = dict(re.findall(r"<!-- file: (\w+\.py) -->\n```python\n(.*?)```", PAGE, re.DOTALL))
    assert set(files) == {"portguard.py", "test_portguard.py"}
    for name, text in files.items():
        (directory / name).write_text(text)


def pytest_says(directory: Path, *options: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", *options],
        cwd=directory, env=environment, capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip
    return done.stdout


def test_the_example_finds_what_it_is_to_find(tmp_path: Path) -> None:
    """Without its last line the first test leaks, and the report says where."""
    example(tmp_path)
    tests = tmp_path / "test_portguard.py"
    without = re.sub(r"\n    fake_port\.pool\.put\(batch\).*", "", tests.read_text())
    tests.write_text(without)
    said = pytest_says(tmp_path, "-k", "only_blocked")
    assert "5 frames still out" in said, said
    assert "batch = fake_port.receive()" in said


@pytest.mark.parametrize("where", ["the page", ".github/workflows/veth.yml"])
def test_the_workflow_is_well_formed(where: str) -> None:
    """It runs at GitHub; here it is parsed, and every action is pinned to a major version."""
    yaml = pytest.importorskip("yaml", reason="needs PyYAML, which the extra docs brings")
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    text = blocks[0] if where == "the page" else (ROOT / where).read_text()
    workflow = yaml.safe_load(text)
    (job,) = workflow["jobs"].values()
    assert job["runs-on"] == "ubuntu-24.04"
    assert job["timeout-minutes"] <= 60
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow[True], "`on` is what YAML 1.1 calls true"
    used = [step["uses"] for step in job["steps"] if "uses" in step]
    assert used
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", name) for name in used)
    commands = "\n".join(step["run"] for step in job["steps"] if "run" in step)
    assert "--afxdp-require" in commands + str(job)
