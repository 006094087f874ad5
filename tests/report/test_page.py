"""Pages of text, tables and figures, as a study writes them."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from segformer_spark import __version__
from segformer_spark.report.page import Page


class Cells(HTMLParser):
    """(tag, class, text) of every cell."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("th", "td"):
            self.found.append((tag, dict(attrs).get("class") or "", ""))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][2] == "":
            self.found[-1] = (*self.found[-1][:2], data)


def written(page: Page, folder: Path) -> str:
    page.write(folder / "page.html")
    return (folder / "page.html").read_text()


def test_tables_numbers_right_text_left_and_nothing_empty(tmp_path: Path) -> None:
    page = Page("Two models")
    rows = [
        {"model": "B0", "miou": 0.123456, "pixels": 1234567, "note": None, "device": None, "empty": ""},
        {"model": "B1", "miou": None, "pixels": 9, "note": "a < b", "device": "CPU", "late": True},
    ]
    page.table(rows)
    cells = Cells()
    cells.feed(written(page, tmp_path))
    assert cells.found[:6] == [
        ("th", "text", "model"),
        ("th", "number", "miou"),
        ("th", "number", "pixels"),
        ("th", "text", "note"),
        ("th", "text", "device"),
        ("th", "number", "late"),
    ], "columns of later rows too"
    assert [text for _, _, text in cells.found[6:12]] == ["B0", "0.1235", "1,234,567", "-", "-", "-"]
    assert [text for _, _, text in cells.found[12:]] == ["B1", "-", "9", "a < b", "CPU", "True"]


def test_the_head_says_how_it_was_made_and_text_is_text(tmp_path: Path) -> None:
    page = Page("<A> & B")
    page.heading("<i>models</i>")
    page.text("1 < 2")
    html = written(page, tmp_path)
    assert f"segformer_spark {__version__}, 20" in html
    assert "<code>" in html
    assert "&lt;A&gt; &amp; B" in html
    assert "<i>models" not in html
    assert "1 &lt; 2" in html
    assert "http" not in html, "no request"
