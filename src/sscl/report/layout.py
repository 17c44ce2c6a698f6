"""One table as Markdown, CSV, LaTeX or HTML. Its notes get their letters in the order in which a reader meets them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from string import ascii_lowercase

from sscl.metrics.table import csv_rows


@dataclass(frozen=True)
class Cell:
    """A text, and keys of the notes that it carries."""

    text: str
    notes: tuple[str, ...] = ()


NOT_RUN = Cell("not run")
"""Instead of a number that there is not."""


@dataclass(frozen=True)
class Table:
    """What to print. footnotes: of the whole table, without a letter. notes: the texts of the cells' keys.

    No cell is empty: an empty cell could mean zero, not run, or forgotten.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    footnotes: Sequence[str] = ()
    notes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for row in self.cells():
            assert len(row) == len(self.head), f"{len(row)} cells under {len(self.head)} heads"
            assert all(cell.text.strip() for cell in row), f"an empty cell in {[cell.text for cell in row]}"
            assert all(key in self.notes for cell in row for key in cell.notes), "a note without a text"

    def cells(self) -> list[list[Cell]]:
        """The rows with every text as a cell."""
        return [[Cell(cell) if isinstance(cell, str) else cell for cell in row] for row in self.rows]

    def letters(self) -> dict[str, str]:
        """key -> letter of each note that is used: a, b, ..., z, aa, ab, ..., row by row from left to right."""
        used = dict.fromkeys(key for row in self.cells() for cell in row for key in cell.notes)
        return {key: _letters(number) for number, key in enumerate(used)}


def markdown(table: Table) -> str:
    """A pipe table of GitHub's kind; marks as `[a]`, the footnotes as paragraphs."""
    letters = table.letters()

    def shown(cell: Cell) -> str:
        marks = "".join(f" [{letters[key]}]" for key in cell.notes)
        return markdown_text(cell.text) + marks

    lines = [
        _piped([markdown_text(text) for text in table.head]),
        _piped(["---"] * len(table.head)),
        *(_piped([shown(cell) for cell in row]) for row in table.cells()),
    ]
    noted = [f"[{letter}] {markdown_text(table.notes[key])}" for key, letter in letters.items()]
    below = [markdown_text(text) for text in table.footnotes]
    return "\n\n".join([f"**{markdown_text(table.title)}**", "\n".join(lines), *noted, *below]) + "\n"


def csv_text(table: Table) -> str:
    """Head and rows. A last column `notes` has the row's notes in full, then the table's footnotes, so that a row that
    is copied elsewhere takes them along. The title is left out."""
    rows = []
    for row in table.cells():
        keys = dict.fromkeys(key for cell in row for key in cell.notes)
        notes = " ".join([*(table.notes[key] for key in keys), *table.footnotes])
        rows.append([*(cell.text for cell in row), notes])
    return csv_rows([[*table.head, "notes"], *rows])


def latex(table: Table) -> str:
    r"""A `table` with its caption, for pdfLaTeX from 2020 on, XeLaTeX or LuaLaTeX; needs `\usepackage{booktabs}`."""
    letters = table.letters()

    def shown(cell: Cell) -> str:
        marks = ",".join(letters[key] for key in cell.notes)
        return latex_text(cell.text) + (rf"\textsuperscript{{{marks}}}" if marks else "")

    noted = [rf"\textsuperscript{{{letter}}} {latex_text(table.notes[key])}" for key, letter in letters.items()]
    below = [*noted, *(latex_text(text) for text in table.footnotes)]
    lines = [
        r"\begin{table}",
        rf"\caption{{{latex_text(table.title)}}}",
        rf"\begin{{tabular}}{{{'l' * len(table.head)}}}",
        r"\toprule",
        " & ".join(latex_text(text) for text in table.head) + r" \\",
        r"\midrule",
        *(" & ".join(shown(cell) for cell in row) + r" \\" for row in table.cells()),
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\noindent {text}" for text in below),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def html(table: Table) -> str:
    """A fragment to put into a page: the table, then one paragraph a footnote."""
    letters = table.letters()

    def shown(cell: Cell) -> str:
        marks = ",".join(letters[key] for key in cell.notes)
        return escape(cell.text) + (f"<sup>{marks}</sup>" if marks else "")

    head = "".join(f"<th>{escape(text)}</th>" for text in table.head)
    body = ["<tr>" + "".join(f"<td>{shown(cell)}</td>" for cell in row) + "</tr>" for row in table.cells()]
    noted = [f"<p><sup>{letter}</sup> {escape(table.notes[key])}</p>" for key, letter in letters.items()]
    lines = [
        "<table>",
        f"<caption>{escape(table.title)}</caption>",
        f"<thead><tr>{head}</tr></thead>",
        "<tbody>",
        *body,
        "</tbody>",
        "</table>",
        *noted,
        *(f"<p>{escape(text)}</p>" for text in table.footnotes),
    ]
    return "\n".join(lines) + "\n"


def markdown_text(text: str) -> str:
    """A text that Markdown shows as it is, also within a table."""
    return " ".join(text.split()).translate(_MARKDOWN)


def latex_text(text: str) -> str:
    r"""A text that LaTeX sets as it is. `[` and `*` too: after `\\` they would be its options."""
    return " ".join(text.split()).translate(_LATEX)


_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>&|~#"})
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "[": "{[}",
        "*": "{*}",
        "±": r"$\pm$",
        "∞": r"$\infty$",
        "λ": r"$\lambda$",
        "α": r"$\alpha$",
        "–": "--",
        **{character: f"\\{character}" for character in "&%$#_{}"},
    }
)


def _piped(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _letters(number: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa."""
    above, last = divmod(number, 26)
    return (_letters(above - 1) if above else "") + ascii_lowercase[last]
