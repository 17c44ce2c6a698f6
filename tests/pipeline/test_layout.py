"""A table in four languages: what is read back is what was put in."""

import csv
import io
import re
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from sscl.report import layout
from sscl.report.layout import NOT_RUN, Cell, Table

AWKWARD = "a_b & 50 % <x> | y"
EVIL = r"[x](y) *b* `c` ~~d~~ \| # {e} $f$ ^g ±∞λα –"
NOTES = {"copied": "Copied & <unchecked>.", "other_cases": "Other cases | 50 %.", "unused": "Never shown."}
TABLE = Table(
    title=f"Title {AWKWARD}",
    head=["Method", "Dice"],
    rows=[
        [Cell(AWKWARD, ("other_cases",)), "0.881"],
        [Cell(EVIL, ("copied", "other_cases")), NOT_RUN],
        ["plain", Cell("1", ("copied",))],
    ],
    footnotes=["Of the whole table_."],
    notes=NOTES,
)


def texts(html: str, tag: str) -> list[str]:
    """The text of each element of that name, `sup` in it as ^text^."""

    class Reader(HTMLParser):
        found: list[str]
        inside = False

        def handle_starttag(self, name, attrs):
            if name == tag:
                self.found.append("")
                self.inside = True
            elif name == "sup" and self.inside:
                self.found[-1] += "^"

        def handle_endtag(self, name):
            if name == tag:
                self.inside = False
            elif name == "sup" and self.inside:
                self.found[-1] += "^"

        def handle_data(self, data):
            if self.inside:
                self.found[-1] += data

    reader = Reader(convert_charrefs=True)
    reader.found = []
    reader.feed(html)
    reader.close()
    return reader.found


def test_letters_are_given_in_the_order_of_reading():
    assert TABLE.letters() == {"other_cases": "a", "copied": "b"}


def test_letters_go_on_after_z():
    notes = {str(number): "text" for number in range(28)}
    letters = Table("t", ["x"], [[Cell("1", (key,))] for key in notes], notes=notes).letters()
    assert [letters[key] for key in ("0", "25", "26", "27")] == ["a", "z", "aa", "ab"]


def test_html_shows_every_text_as_it_is():
    page = layout.html(TABLE)
    assert texts(page, "caption") == [f"Title {AWKWARD}"]
    assert texts(page, "th") == ["Method", "Dice"]
    assert texts(page, "td") == [f"{AWKWARD}^a^", "0.881", f"{EVIL}^b,a^", "not run", "plain", "1^b^"]
    assert texts(page, "p") == ["^a^ Other cases | 50 %.", "^b^ Copied & <unchecked>.", "Of the whole table_."]
    assert "<x>" not in page


def test_markdown_shows_every_text_as_it_is():
    """Read by markdown-it, with the extensions that GitHub has."""
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(layout.markdown(TABLE))
    assert texts(page, "strong") == [f"Title {AWKWARD}"]
    assert texts(page, "th") == ["Method", "Dice"]
    assert texts(page, "td") == [f"{AWKWARD} [a]", "0.881", f"{EVIL} [b] [a]", "not run", "plain", "1 [b]"]
    notes = ["[a] Other cases | 50 %.", "[b] Copied & <unchecked>.", "Of the whole table_."]
    assert texts(page, "p")[1:] == notes
    assert set(re.findall(r"<(\w+)", page)) == {"p", "strong", "table", "thead", "tbody", "tr", "th", "td"}


def test_csv_is_read_back_with_the_notes_in_full():
    rows = list(csv.reader(io.StringIO(layout.csv_text(TABLE))))
    assert rows == [
        ["Method", "Dice", "notes"],
        [AWKWARD, "0.881", "Other cases | 50 %. Of the whole table_."],
        [EVIL, "not run", "Copied & <unchecked>. Other cases | 50 %. Of the whole table_."],
        ["plain", "1", "Copied & <unchecked>. Of the whole table_."],
    ]


def test_csv_holds_no_formula():
    text = layout.csv_text(Table("t", ["x"], [["=1+1"]]))
    assert list(csv.reader(io.StringIO(text)))[1] == ["'=1+1", ""]


def test_latex_escapes():
    lines = layout.latex(TABLE).splitlines()
    awkward = r"a\_b \& 50 \% \textless{}x\textgreater{} \textbar{} y"
    evil = (
        r"{[}x](y) {*}b{*} `c` \textasciitilde{}\textasciitilde{}d\textasciitilde{}\textasciitilde{} "
        r"\textbackslash{}\textbar{} \# \{e\} \$f\$ \textasciicircum{}g $\pm$$\infty$$\lambda$$\alpha$ --"
    )
    assert lines == [
        r"\begin{table}",
        rf"\caption{{Title {awkward}}}",
        r"\begin{tabular}{ll}",
        r"\toprule",
        r"Method & Dice \\",
        r"\midrule",
        rf"{awkward}\textsuperscript{{a}} & 0.881 \\",
        rf"{evil}\textsuperscript{{b,a}} & not run \\",
        r"plain & 1\textsuperscript{b} \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\noindent \textsuperscript{a} Other cases \textbar{} 50 \%.",
        r"\par\noindent \textsuperscript{b} Copied \& \textless{}unchecked\textgreater{}.",
        r"\par\noindent Of the whole table\_.",
        r"\end{table}",
    ]


def test_a_line_break_in_a_cell_does_not_break_the_row():
    table = Table("t", ["x"], [["a\n| b"]])
    assert r"| a \| b |" in layout.markdown(table).splitlines()
    assert r"a \textbar{} b \\" in layout.latex(table).splitlines()


@pytest.mark.parametrize(
    ("rows", "why"),
    [([["1"]], "1 cells under 2 heads"), ([["1", " "]], "empty cell"), ([["1", Cell("2", ("no",))]], "without a text")],
)
def test_a_table_that_says_nothing_somewhere_is_our_mistake(rows, why):
    with pytest.raises(AssertionError, match=why):
        Table("t", ["x", "y"], rows)
