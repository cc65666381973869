"""What `ringfence report` does: a results file as a page, as CSV, as one JSON document or as text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bounds.errors import OutputError
from verify import exits
from verify.document import to_json
from verify.report import write_page
from verify.report_data import Selection, select
from verify.report_export import document, say, to_csv
from verify.witness import check_place, write_atomically


@dataclass(frozen=True)
class Report:
    """A run of `ringfence report`; `tell` prints text to standard output. See `verify.report_data.select` for the first three fields."""

    results: Path
    against: Path | None
    configuration: int | None
    tell: Callable[[str], None]
    as_json: bool = False
    html: Path | None = None
    csv: Path | None = None

    def run(self) -> int:
        """Write what was asked for and return the exit code, which is 0 whatever the verdicts.

        Raises:
            ResultsError: a results file cannot be used. OutputError: something cannot be written, or would overwrite what is read.
        """
        outputs = [path for path in (self.html, self.csv) if path is not None]
        self._check(outputs)
        selection = select(self.results, self.against, self.configuration)
        if self.html is not None:
            write_page(selection, self.results, self.html)
        if self.csv is not None:
            write_atomically(self.csv, to_csv(() if selection.main is None else selection.main.rows).encode())
        self.tell(to_json(document(selection)) if self.as_json else self._text(selection, outputs))
        return exits.VERIFIED

    def _check(self, outputs: list[Path]) -> None:
        taken = {path.resolve() for path in (self.results, self.against) if path is not None}
        for path in outputs:
            check_place(path)
            if path.resolve() in taken:
                raise OutputError(f"{path} is named twice, and writing it would destroy what is read; name another file")
            taken.add(path.resolve())

    def _text(self, selection: Selection, outputs: list[Path]) -> str:
        files = [path for path in outputs if path.is_file()]  # a device or a pipe has no size
        return "\n".join([say(selection), *(f"{path} written ({path.stat().st_size / 1e6:.2f} MB)" for path in files)])
