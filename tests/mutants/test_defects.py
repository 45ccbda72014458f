"""The defects that `make mutants` plants fit the code."""

from pathlib import Path

import pytest

from tests.mutants.defects import DEFECTS, Defect

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_defect_changes_one_place(defect: Defect) -> None:
    """X1, X2: the defect can be planted, and the tests that should catch it exist."""
    assert (ROOT / defect.path).read_text().count(defect.old) == 1
    assert defect.new != defect.old
    assert (ROOT / defect.tests).exists()
