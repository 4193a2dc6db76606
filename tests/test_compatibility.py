"""docs/compatibility.md says what the tests say."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
TEXT = (TESTS.parent / "docs" / "compatibility.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line.startswith("| ")]


def constant(file: str, name: str) -> dict[str, str]:
    """Return a dict of strings that a file of tests assigns, without importing it."""
    for node in ast.parse((TESTS / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            value = ast.literal_eval(node.value)
            assert isinstance(value, dict)
            return value
    raise AssertionError(f"{file} has no {name}")


def test_every_case_is_listed_with_its_state() -> None:
    refused = constant("model/test_golden.py", "REFUSED")
    cases = {path.parent.name for path in (TESTS / "golden").glob("*/golden.npz")}
    listed: dict[str, str] = {}
    for _, names, state in (row for row in ROWS if len(row) == 3 and row[2] in ("exact", "refused")):
        listed |= dict.fromkeys(re.findall(r"`([^`]+)`", names), state)
    assert listed == {case: "refused" if case in refused else "exact" for case in cases}


def test_rows_name_tests_that_exist() -> None:
    rows = [row for row in ROWS if "`test_" in row[2]]
    assert len(rows) == 5
    for row in rows:
        for file, names in re.findall(r"`([\w/]+\.py)`: ((?:`\w+`(?:, )?)+)", row[2]):
            functions = set(re.findall(r"^def (test_\w+)", (TESTS / file).read_text(encoding="utf-8"), re.MULTILINE))
            assert set(re.findall(r"`(\w+)`", names)) <= functions, file
