"""Read the paragraphs of a text file as rows: memory holds one paragraph.

`datasets` reads text by paragraph too; it reports no lines, and knows neither UTF-16 nor files that end too early.
"""

from collections.abc import Iterator
from pathlib import Path

from tokenuq_ml.data.sources.data_stream import open_lines
from tokenuq_ml.data.sources.json_records import lines
from tokenuq_ml.data.sources.records import MAX_TEXT, BrokenRow, Record, TruncatedFile


def paragraphs(path: Path) -> Iterator[Record]:
    """Yield a record `{"text"}` per paragraph: lines up to a blank one, without the line ends around them.

    Raises:
        TruncatedFile: the compressed file ends too early.
    """
    index = number = 0
    held = _Paragraph()
    with open_lines(path) as file:
        for number, line in enumerate(lines(file), 1):
            if line is None or line.strip():
                held.add(number, line)
            elif held.line:
                yield held.record(index)
                index, held = index + 1, _Paragraph()
        if file.is_truncated:
            raise TruncatedFile(f"line {held.line or number + 1} (byte {file.tell():,})", index)
    if held.line:
        yield held.record(index)


class _Paragraph:
    """Lines of a paragraph, up to the largest length of a text."""

    def __init__(self) -> None:
        self.line = 0
        """Number of its first line; 0 if it has none."""
        self._lines: list[str] = []
        self._size = 0

    def add(self, number: int, line: bytes | None) -> None:
        """Add a line; None for one that is too long."""
        self.line = self.line or number
        text = "" if line is None else line.decode("utf-8", "surrogateescape").rstrip("\r\n")
        self._size += MAX_TEXT + 2 if line is None else len(text) + 1
        if self._size <= MAX_TEXT + 1:
            self._lines.append(text)

    def record(self, index: int) -> Record:
        """Return the paragraph as a row."""
        if self._size > MAX_TEXT + 1:
            detail = f"the paragraph holds more than {MAX_TEXT:,} characters; put blank lines between its parts"
            return Record(index, self.line, BrokenRow("text too long", detail))
        return Record(index, self.line, {"text": "\n".join(self._lines)})
