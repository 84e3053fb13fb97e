"""What massive activations need, as a page shows it."""

import csv

import pytest
from wisparse.repro.report.summaries.massive import dropped_table, entries_table, needs_table
from wisparse.repro.studies.massive_needs import COLUMNS


def written(path, table, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS[table], restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def entry(site, block, channel, first, **changes):
    return {
        "bases": "own", "site": site, "block": block, "channel": channel, "median": 0.1, "first": first,
        "other_tokens": 0.012,
    } | changes  # fmt: skip


def need(method, part, setting, divergence, extra=0, rise=0.5):
    bounds = {"divergence_low": divergence - 0.01, "divergence_high": divergence + 0.01}
    known = {"method": method, "part": part, "setting": setting, "divergence": divergence, "extra_bytes": extra}
    return known | bounds | {"rise": rise, "rise_low": rise - 0.1, "rise_high": rise + 0.1}


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


def test_runs_of_blocks_and_channels_of_a_block_have_a_line(tmp_path):
    rows = [
        entry("mlp_hidden", 2, 90, 60), entry("mlp_hidden", 2, 430, 80, other_tokens=0.02),
        entry("mlp_hidden", 3, 7, 49), entry("mlp_hidden", 4, 7, 900, bases="folded"),
        entry("stream", 2, 507, 700), entry("stream", 3, 507, 750), entry("stream", 9, 507, 24_000),
    ]  # fmt: skip
    assert cells(entries_table(written(tmp_path / "entries.csv", "entries", rows))) == [
        ["input of down", "2", "90, 430", "60 to 80", "600 to 800", "2.0%"],
        ["residual stream behind the block", "2 to 3", "507", "700 to 750", "7,000 to 7,500", "1.2%"],
        ["residual stream behind the block", "9", "507", "24,000", "240,000", "1.2%"],
    ]


@pytest.fixture
def needs(tmp_path):
    rows = [need("dense, own bases", "dropped alone", "inputs of down, first token", 2.3, rise=7.0)]
    for method, plan in (("teal", 0.3), ("equal_loss", 0.2)):
        rows += [
            need(method, "plan", "all tokens sparse", plan),
            need(method, "dense tokens", "the first 1", plan - 0.1, 884_985),
            need(method, "first token alone sparse", "in k", 0.02, ""),
            need(method, "first token alone sparse", "in block 1", 0.01, ""),
            need(method, "first token alone sparse", "in block 8", 0.04, ""),
            need(method, "first token alone sparse", "in k of block 8", 0.03, ""),
            need(method, "kept besides", "the first token in blocks 8", plan, 1000),
            need(method, "kept besides", "the first token in blocks 1, 8", plan, -90_000),
        ]
    return written(tmp_path / "needs.csv", "needs", rows)


def test_what_is_dropped_alone_says_what_perplexity_becomes(needs):
    assert cells(dropped_table(needs)) == [
        ["inputs of down, first token", "2.300 [2.290, 2.310]", "× 8.00 [7.90, 8.10]"]
    ]


def test_settings_of_all_methods_stand_beside_each_other_and_blocks_by_what_they_cost(needs):
    assert cells(needs_table(needs)) == [
        ["all tokens sparse", "0.300 [0.290, 0.310]", "0.200 [0.190, 0.210]"],
        ["dense tokens: the first 1", "0.200 [0.190, 0.210], +0.88 MB", "0.100 [0.090, 0.110], +0.88 MB"],
        ["first token alone sparse: in k", *["0.020 [0.010, 0.030]"] * 2],
        ["first token alone sparse, in the dearest blocks", *["8: 0.040, 1: 0.010"] * 2],
        [
            "kept besides, the first token in the dearest five",
            "blocks 1, 8: 0.300 [0.290, 0.310], -0.09 MB", "blocks 1, 8: 0.200 [0.190, 0.210], -0.09 MB",
        ],
    ]  # fmt: skip
