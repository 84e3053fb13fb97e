"""Tables from records: `python -m wisparse.repro.tables table1 --records FOLDER --output results/table1`.

Speed: `python -m wisparse.repro.tables speed --records FOLDER --output results/speed`. A question and its plot:
`python -m wisparse.repro.tables question --records outputs/question_alpha --output results/questions/alpha`.
"""

from __future__ import annotations

import argparse
from inspect import signature
from pathlib import Path
from typing import Any

from ..configuration import mistakes_in_one_line
from ..record_facts import suite_choice
from .against_bytes.bars_table import BARS
from .against_bytes.frontier_table import FRONTIER
from .against_bytes.generation_table import GENERATION
from .against_bytes.given_loss_table import GIVEN_LOSS
from .against_bytes.own_table import OWN
from .against_bytes.plan_times import PLAN_TIMES
from .against_bytes.quantised_table import QUANTISED
from .against_bytes.real_frontier_table import REAL_FRONTIER
from .against_bytes.real_table import READINGS, REAL
from .against_bytes.text_amounts import TEXT_AMOUNTS
from .csv_rows import write_table
from .full_size_table import FULL_SIZE
from .heads_table import HEADS
from .kept_records import Cells, made_from_records, records_parser
from .plot_style import ink, write_figure
from .questions.question_table import QUESTION
from .speed.speed_table import SPEED
from .table import Table
from .table1 import TABLE1
from .table2 import TABLE2

TABLES: dict[str, Table[Any]] = {
    table.name: table
    for table in (
        TABLE1,
        TABLE2,
        REAL,
        READINGS,
        OWN,
        BARS,
        PLAN_TIMES,
        TEXT_AMOUNTS,
        FRONTIER,
        REAL_FRONTIER,
        GENERATION,
        GIVEN_LOSS,
        QUANTISED,
        HEADS,
        QUESTION,
        FULL_SIZE,
        SPEED,
    )
}
"""Every table by its name: for the command line, the report and whoever measures."""


def write_tables(table: Table[Any], data: Cells, output: Path) -> None:
    """Write OUTPUT.md and OUTPUT.csv, and OUTPUT.png and .svg of a table with a figure."""
    write_table(output, table.csv(data), table.markdown(data))
    if table.figure is not None:
        with ink(output.name):
            write_figure(table.figure(data), output)


def takes_several(table: Table[Any]) -> bool:
    """Whether a table is made of several folders of records together: its `read` takes any number of them."""
    return any(each.kind is each.VAR_POSITIONAL for each in signature(table.read).parameters.values())


def _part_of_records(text: str) -> tuple[str, str]:
    group, _, name = text.partition("=")
    if group not in ("suite", "protocol", "search") or not name:
        raise argparse.ArgumentTypeError(f"'{text}' is none of suite=NAME, protocol=NAME, search=NAME")
    return group, name


def _kept(where: dict[str, str]) -> dict[str, Any]:
    """The argument of a table's `read` that keeps the records with these names; none where all are kept."""

    def keep(record: dict[str, Any]) -> bool:
        found = {group: record["config"][group]["name"] for group in where if group != "suite"}
        found["suite"] = suite_choice(record["suite"]["name"])
        return where.items() <= found.items()

    return {"keep": keep} if where else {}


@mistakes_in_one_line()
def main() -> None:
    """Make a table from the records below a folder."""
    parser = records_parser(main.__doc__, "path of the table without .md and .csv")
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument(
        "--where",
        nargs="+",
        default=[],
        type=_part_of_records,
        metavar="GROUP=NAME",
        help="frontiers, quantised, heads: records of these alone, such as suite=wikitext protocol=half",
    )
    arguments = parser.parse_args()
    table = TABLES[arguments.table]
    if arguments.where and table not in (FRONTIER, REAL_FRONTIER, QUANTISED, HEADS):
        parser.error("--where chooses records of the frontiers, quantised and heads alone")
    if len(arguments.records) > 1 and not takes_several(table):
        parser.error(f"{arguments.table} is made from one folder of records")
    where = _kept(dict(arguments.where))
    made_from_records(
        arguments,
        lambda records: table.read(*records, **where),
        lambda data: write_tables(table, data, arguments.output),
    )
    print(arguments.output.with_name(f"{arguments.output.name}.md").read_text(encoding="utf-8"))
    print(f"written: {arguments.output}.md and {arguments.output}.csv")


if __name__ == "__main__":
    main()
