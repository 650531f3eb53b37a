"""The tables and figures that the docs show are what the stored results give today."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from score_rl.cli import app

RESULTS = Path(__file__).parent.parent / "docs" / "results"


@pytest.mark.parametrize("sweep", sorted(RESULTS.iterdir()), ids=lambda path: path.name)
def test_tables_and_figures_follow_from_the_stored_results(sweep: Path, tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["table", str(sweep), "-o", str(tmp_path)])
    assert made.exit_code == 0, made.output
    files = [file.relative_to(tmp_path) for file in sorted(tmp_path.rglob("*")) if file.is_file()]
    assert {Path("tables.md"), Path("tables.csv"), Path("tables.tex")} < set(files)
    assert [str(name) for name in files if (sweep / name).read_bytes() != (tmp_path / name).read_bytes()] == []
