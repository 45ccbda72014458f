"""The documents say what is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROW = re.compile(r"\b[EWOJX]\d+\b")


def test_each_requirement_is_shown_by_a_test() -> None:
    """Every row of docs/requirements.md stands in the docstring of at least one test."""
    rows = set(
        re.findall(r"^\| ([EWOJX]\d+) \|", (ROOT / "docs/requirements.md").read_text(), re.M)
    )
    assert len(rows) == 46
    shown: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith(
                "test_"
            ):
                text = ast.get_docstring(node) or ""
                shown.update(ROW.findall(text))
                for kind, first, last in re.findall(r"\b([EWOJX])(\d+)[-–](?:[EWOJX])?(\d+)", text):  # noqa: RUF001
                    shown.update(f"{kind}{n}" for n in range(int(first), int(last) + 1))
    assert sorted(rows - shown) == []


def test_each_setting_is_documented() -> None:
    """Design rule 8: the README's table names every variable that the settings read."""
    readme = (ROOT / "README.md").read_text()
    settings = (ROOT / "expensesite/settings.py").read_text()
    names = re.findall(r'env\.\w+\(\s*"([A-Z_]+)"', settings)
    assert len(names) > 10
    assert [name for name in names if name not in readme] == []


def test_links_between_documents_lead_somewhere() -> None:
    """Each relative link of a document names a file."""
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
