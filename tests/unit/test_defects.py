"""Which kernels and drivers the doctor warns of, and that the book says the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from afxdp_pool.cli.defects import DEFECTS, known

PAGE = Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md"


def names(release: str, driver: str = "", *, zero_copy: bool = False) -> list[str]:
    return [finding.text.rpartition("(")[2].rstrip(")") for finding in known(release, driver, zero_copy=zero_copy)]


@pytest.mark.parametrize(
    ("release", "found"),
    [
        ("6.17.0", ["CVE-2025-40290"]),
        ("6.17.10-1-amd64", ["CVE-2025-40290"]),
        ("6.17-rc1", ["CVE-2025-40290"]),
        ("6.17.11", []),
        ("6.16.7", []),
        ("6.16.8+deb14-cloud-amd64", ["CVE-2025-40290"]),
        ("6.18.1", []),
        ("5.15.32", []),
        ("5.15.33-generic", ["CVE-2023-53240"]),
        ("5.15.190", ["CVE-2023-53240"]),
        ("5.19.0", ["CVE-2023-53240"]),
        ("6.1.15", ["CVE-2023-53240"]),
        ("6.1.16", []),
        ("6.2.3", []),
        ("6.3", []),
        ("a kernel of one's own", []),
    ],
)
def test_kernels(release: str, found: list[str]) -> None:
    assert names(release) == found


@pytest.mark.parametrize(
    ("release", "driver", "zero_copy", "found"),
    [
        ("5.15.86", "veth", False, ["fa349e396e48"]),
        ("5.15.87", "veth", False, []),
        ("6.0.19", "veth", False, ["fa349e396e48"]),
        ("6.1.5", "veth", False, []),
        ("6.18.44", "veth", False, []),
        ("6.14.0", "igb", True, ["CVE-2026-31691", "CVE-2026-43092"]),
        ("6.14.0", "igb", False, []),
        ("6.13.12", "igb", True, ["CVE-2026-43092"]),
        ("6.18.23", "igb", True, ["CVE-2026-43092"]),
        ("6.18.24", "igb", True, []),
        ("7.0.1", "ixgbe", True, []),
        ("7.0.1", "ice", True, ["netdev 20260512152658.2818805-1"]),
        ("6.12.83", "ice", True, []),
        ("6.8.0", "bonding", False, ["xdp-newbies 2023-12-19"]),
        ("6.17.1", "e1000e", False, []),
    ],
)
def test_drivers(release: str, driver: str, zero_copy: bool, found: list[str]) -> None:
    assert names(release, driver, zero_copy=zero_copy) == found


def test_each_has_a_remedy_and_a_row_of_the_book() -> None:
    page = PAGE.read_text()
    for defect in DEFECTS:
        assert defect.finding().fix
        assert "\n" not in defect.finding().text
        assert defect.name in page, f"{defect.name} is not on the page"
        for version in (*defect.since, *defect.fixed):
            number = ".".join(map(str, version)).removesuffix(".0")
            assert version == (0, 0, 0) or number in page, f"{number} of {defect.name} is not on the page"


def test_the_doctor_says_it_of_an_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    from afxdp_pool.cli import doctor_machine, doctor_netdev

    now = os.uname()
    monkeypatch.setattr("os.uname", lambda: os.uname_result((*now[:2], "6.17.3", *now[3:])))
    assert "CVE-2025-40290" in str(doctor_machine.examine())
    assert "CVE" not in str(doctor_netdev.examine("lo", None))
