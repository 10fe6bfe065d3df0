"""Every code block of README.md and docs/ runs, prints what it says, and loses no frame; see blocks.py for how."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from blocks import ROOT, Page, blocks

BOOK = sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *BOOK]
WITH_CODE = [page for page in PAGES if any(block.code for block in blocks(page))]
NAMES = {str(page.relative_to(ROOT)): page for page in WITH_CODE}

#: Blocks that cannot be run here, each for the reason its page gives. A new one is added on purpose, or not at all.
NOT_RUN = {
    "README.md": 1,
    "docs/concurrency.md": 2,
    "docs/conformance.md": 1,
    "docs/development.md": 1,
    "docs/installing.md": 2,
    "docs/nic-setup.md": 13,
    "docs/performance.md": 1,
    "docs/large-packets.md": 2,
    "docs/privileges.md": 1,
    "docs/real-nics.md": 1,
    "docs/remote-returns.md": 1,
    "docs/troubleshooting.md": 1,
    "docs/tutorial.md": 2,
    "examples/README.md": 2,
}


@pytest.mark.parametrize("name", NAMES)
def test_page(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    found = blocks(NAMES[name])
    needs_lab = any(block.needs_lab for block in found)
    if needs_lab:
        request.getfixturevalue("veth_machine")
    with Page(NAMES[name], tmp_path) as page:
        if needs_lab:
            page.enter_lab()
        for block in found:
            try:
                page.run(block)
            except Exception as error:
                error.add_note(f"in the block at {block}")
                raise
        page.finish()


def test_blocks_that_are_not_run_are_counted() -> None:
    counted = Counter(str(b.page.relative_to(ROOT)) for page in PAGES for b in blocks(page) if "not run" in b.notes)
    assert dict(counted) == NOT_RUN
