"""Student versions of the lessons: the same notebooks without outputs, each solution replaced by a blank.

    python teaching/make_students.py            writes teaching/student/*.ipynb anew
    python teaching/make_students.py --check    says which are not up to date, exit code 1 if any

A solution cell carries the tag `solution` and a line `# solution`. What stands above that line stays (the name of the
function and what it should return), the block below becomes `raise NotImplementedError`, so that the check behind it
fails until the reader has written an answer.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat

HERE = Path(__file__).resolve().parent
LESSONS, STUDENT = HERE.parent / "notebooks" / "lessons", HERE / "student"
MARK = "# solution"
NOTE = (
    "## Exercises\n\nReplace each line `raise NotImplementedError` by your answer, as many lines as you need. The cell "
    "behind it checks the answer and says *right*. The solutions are in the lesson of the same name."
)


def blank(source: str) -> str:
    """The source of a solution cell with everything below its `# solution` line, to the end, as a blank.

    Raises ValueError for a cell with no such line, with several, or with code of another block below.
    """
    lines = source.split("\n")
    places = [n for n, line in enumerate(lines) if line.strip() == MARK]
    if len(places) != 1:
        raise ValueError(f"a solution cell has {len(places)} lines {MARK!r}; allowed: one.")
    above, below = lines[: places[0]], lines[places[0] + 1 :]
    indent = lines[places[0]][: -len(MARK)]
    if any(line.strip() and not line.startswith(indent) for line in below):
        raise ValueError(f"code below {MARK!r} leaves its block; allowed: the solution as the end of the cell.")
    return "\n".join([*above, f'{indent}raise NotImplementedError("your answer")'])


def student_version(lesson: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy for students: blanks for solutions, no outputs, the note above the exercises says what to do."""
    notebook = nbformat.from_dict(lesson)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if "exercises" in tags:
            cell.source = NOTE
        if "solution" in tags:
            cell.source = blank(cell.source)
            cell.metadata = nbformat.from_dict({"tags": ["blank"]})  # no longer folded away
    return notebook


def text(lesson: Path) -> str:
    """What the student version of a lesson's file holds."""
    return nbformat.writes(student_version(nbformat.read(lesson, 4))) + "\n"


def main(arguments: list[str]) -> int:
    stale = []
    for lesson in sorted(LESSONS.glob("[0-9]*.ipynb")):
        path, wanted = STUDENT / lesson.name, text(lesson)
        if path.exists() and path.read_text() == wanted:
            continue
        stale.append(path.name)
        if "--check" not in arguments:
            STUDENT.mkdir(exist_ok=True)
            path.write_text(wanted)
    print(f"{'not up to date' if '--check' in arguments else 'written'}: {', '.join(stale) or 'none'}")
    return int("--check" in arguments and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
