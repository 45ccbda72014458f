"""The documents agree with the code."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
ROW = re.compile(r"\b[EWOJX]\d+\b")


def test_each_requirement_is_shown_by_a_test() -> None:
    """The docstring of at least one test names each row of docs/requirements.md."""
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
    """The README's table names every variable that the settings read."""
    readme = (ROOT / "README.md").read_text()
    settings = (ROOT / "expensesite/settings.py").read_text()
    names = re.findall(r'env\.\w+\(\s*"([A-Z_]+)"', settings)
    assert len(names) > 10
    assert [name for name in names if name not in readme] == []


def test_links_between_documents_lead_somewhere() -> None:
    """Each relative link of a document names a file."""
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_each_test_that_a_document_names_exists() -> None:
    """A name is a folder or a file of tests, or a test as `path::name`."""
    named = {
        name
        for document in DOCUMENTS
        for name in re.findall(r"`(tests/[^`]+)`", document.read_text())
    }
    assert len(named) > 20
    missing = []
    for name in named:
        path, _, test = name.partition("::")
        if not (ROOT / path).exists() or (test and f"def {test}(" not in (ROOT / path).read_text()):
            missing.append(name)
    assert sorted(missing) == []
