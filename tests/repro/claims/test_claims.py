"""The papers' claims: one test a claim against results/claims.csv, and the rules that decide them."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import pytest
from wisparse.method.errors import UserError
from wisparse.repro.claims.evidence import EMBEDDED, Evidence
from wisparse.repro.claims.printed import load_claims
from wisparse.repro.claims.verify import (
    INCONSISTENT,
    NOT_DECIDED,
    NOT_REPRODUCED,
    REPRODUCED,
    Verified,
    claims_csv,
    claims_markdown,
    verify,
)

from ...conftest import ROOT
from .full_size_records import write_record

CLAIMS = load_claims()
RESULTS = ROOT / "results"
WISPARSE_50 = "wisparse/table1/llama3.1-8b-wisparse-50"


def verified_in(results: Path) -> dict[str, Verified]:
    return {entry.claim.id: entry for entry in verify(CLAIMS, Evidence(results))}


@cache
def committed() -> dict[str, Verified]:
    return verified_in(RESULTS)


@cache
def stored() -> dict[str, dict[str, str]]:
    with (RESULTS / "claims.csv").open(encoding="utf-8", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
@pytest.mark.claims
@pytest.mark.parametrize("name", [claim.id for claim in CLAIMS])
def test_claim(name):
    found = committed()[name]
    assert stored()[name]["verdict"] == found.verdict, "run `make verify-claims`"
    assert stored()[name]["printed"] == found.printed, "run `make verify-claims`"
    if found.verdict == NOT_DECIDED:
        pytest.skip(found.reason)
    assert found.finding.contradiction or found.finding.measured


def test_the_committed_tables_are_as_the_code_makes_them():
    found = list(committed().values())
    assert (RESULTS / "claims.csv").read_text(encoding="utf-8") == claims_csv(found), "run `make verify-claims`"
    assert (RESULTS / "claims.md").read_text(encoding="utf-8") == claims_markdown(found), (
        "run `make verify-claims`"
    )


def inconsistent(found: dict[str, Verified], start: str) -> dict[str, str]:
    return {
        name: entry.reason
        for name, entry in found.items()
        if name.startswith(start) and entry.verdict == INCONSISTENT
    }


def test_averages_that_do_not_match_their_rows(tmp_path):
    found = verified_in(tmp_path)
    wrong = [name for name, why in inconsistent(found, "wina/tables/").items() if "average" in why]
    assert len(wrong) == 13
    mistral = inconsistent(found, "wisparse/table1/mistral-7b")
    assert {name.rsplit("-", 1)[1] for name in mistral} == {"30", "40"}
    assert len(mistral) == 6


def test_what_else_cannot_be(tmp_path):
    found = verified_in(tmp_path)
    assert "81.32 is not a multiple of 1/164" in found["wisparse/table1/qwen2.5-7b-teal-40"].reason
    headline = found["wisparse/speedup/headline"]
    assert headline.verdict == INCONSISTENT
    assert "17.2 %; the number is that of mistral-7b" in headline.reason
    assert found["wina/lead/over-teal"].verdict == INCONSISTENT
    exchanged = [name for name, why in inconsistent(found, "wina/").items() if "exchanged" in why]
    assert {name.rsplit("-", 1)[1] for name in exchanged} == {"25", "40", "50"}
    assert all("qwen2.5-7b-base-teal-" in name for name in exchanged)


def test_operations_follow_from_the_architecture(tmp_path):
    found = verified_in(tmp_path)
    assert {found[f"wisparse/flops/{name}"].verdict for name in ("dense", "sparse")} == {REPRODUCED}


def printed(name: str) -> dict[str, float]:
    claim = next(claim for claim in CLAIMS if claim.id == name)
    return {task: value for task, value in claim.printed.items() if task != "average"}


def test_a_row_is_decided_by_a_full_size_record(tmp_path):
    assert verified_in(tmp_path)[WISPARSE_50].verdict == NOT_DECIDED
    write_record(tmp_path, "wisparse", printed(WISPARSE_50))
    found = verified_in(tmp_path)[WISPARSE_50]
    assert (found.verdict, found.reason, found.command) == (REPRODUCED, "", "")
    assert "gsm8k 78.80 ± 1.29" in found.finding.measured


@pytest.mark.parametrize("task", ["gsm8k", "siqa"])
def test_a_task_beyond_three_standard_errors_is_not_reproduced(tmp_path, task):
    scores = printed(WISPARSE_50)
    write_record(tmp_path, "wisparse", scores | {task: scores[task] - 5.5})  # about 3.5 standard errors of 1.6
    found = verified_in(tmp_path)[WISPARSE_50]
    assert found.verdict == NOT_REPRODUCED
    assert found.reason == f"outside the tolerance: {task}"


def test_an_average_beyond_two_standard_errors_is_not_reproduced(tmp_path):
    scores = {task: score - 1.6 for task, score in printed(WISPARSE_50).items()}  # its standard error is 0.6
    write_record(tmp_path, "wisparse", scores)
    found = verified_in(tmp_path)[WISPARSE_50]
    assert (found.verdict, found.reason) == (NOT_REPRODUCED, "outside the tolerance: average")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"suite": {"limit": 8}}, "measured on 8 items"),
        ({"search": {"name": "quick"}}, "search=quick"),
        ({"protocol": {"name": "all"}}, "protocol=all"),
        ({"calibration": {"name": "c4"}}, "calibration=c4"),
        ({"model": {"weights": "random"}}, "no result of llama3.1-8b"),
    ],
)
def test_other_conditions_decide_nothing(tmp_path, change, reason):
    write_record(tmp_path, "wisparse", printed(WISPARSE_50), config=change)
    found = verified_in(tmp_path)[WISPARSE_50]
    assert found.verdict == NOT_DECIDED
    assert reason in found.reason
    assert found.command.startswith("make reproduce-table1 PROFILE=paper OVERRIDES='model=llama3.1-8b ")


def test_a_record_without_humaneval_decides_nothing(tmp_path):
    scores = printed(WISPARSE_50)
    del scores["humaneval"]
    write_record(tmp_path, "wisparse", scores)
    assert verified_in(tmp_path)[WISPARSE_50].reason == "measured without humaneval"


def test_embedded_models_decide_nothing(tmp_path):
    before = {name: entry.verdict for name, entry in verified_in(tmp_path).items()}
    for model in EMBEDDED:
        write_record(tmp_path, "wisparse", printed(WISPARSE_50), model=model)
        write_record(tmp_path, "dense", printed(WISPARSE_50), model=model, sparsity=0.0)
    assert {name: entry.verdict for name, entry in verified_in(tmp_path).items()} == before
    kinds = {entry.claim.kind for entry in committed().values() if entry.verdict == REPRODUCED}
    assert kinds <= {"tflops"} or Evidence(RESULTS).cells, (
        "nothing but operations is known without large models"
    )


@pytest.mark.slow
def test_kept_and_lead_are_decided_by_paired_intervals(tmp_path):
    for method, sparsity in (("dense", 0.0), ("teal", 0.5), ("rsparse", 0.5), ("wisparse", 0.5)):
        name = f"wisparse/table1/llama3.1-8b-{method}-{100 * sparsity:g}"
        write_record(tmp_path, method, printed(name), sparsity=sparsity)
    found = verified_in(tmp_path)
    assert found["wisparse/kept/llama3.1-8b"].verdict == REPRODUCED
    assert found["wisparse/lead/strongest-baseline"].verdict == REPRODUCED
    write_record(tmp_path, "wisparse", dict.fromkeys(printed(WISPARSE_50), 40.0))
    found = verified_in(tmp_path)
    assert found["wisparse/kept/llama3.1-8b"].verdict == NOT_REPRODUCED
    assert found["wisparse/lead/strongest-baseline"].verdict == NOT_REPRODUCED


def write_speed(results: Path, device: str, tok_s: float, speedup: float, model: str = "llama3.1-8b") -> None:
    header = "device,model,method,sparsity,batch,prompt,new_tokens,baseline,tok_s,speedup"
    row = f"{device},{model},wisparse,0.5,1,5,200,torch.compile,{tok_s},{speedup}"
    (results / "speed.csv").write_text(f"{header}\n{row}\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("device", "tok_s", "speedup", "verdicts"),
    [
        ("NVIDIA H20", 175.0, 1.15, (REPRODUCED, REPRODUCED)),
        ("NVIDIA H20", 250.0, 1.4, (NOT_REPRODUCED, REPRODUCED)),
        ("NVIDIA H20", 160.0, 1.05, (NOT_REPRODUCED, NOT_REPRODUCED)),
        ("NVIDIA H200", 179.9, 1.172, (NOT_DECIDED, NOT_DECIDED)),
    ],
)
def test_speed_is_decided_on_the_papers_own_gpu(tmp_path, device, tok_s, speedup, verdicts):
    write_speed(tmp_path, device, tok_s, speedup)
    found = verified_in(tmp_path)
    names = ("wisparse/speed/sparse", "wisparse/speedup/llama3.1-8b")
    assert tuple(found[name].verdict for name in names) == verdicts
    assert f"on {device}" in found[names[1]].finding.measured


def test_speed_of_an_embedded_model_is_shown_apart(tmp_path):
    write_speed(tmp_path, "CPU (2 threads)", 900.0, 1.3, "llama-mini")
    found = verified_in(tmp_path)["wisparse/speedup/llama3.1-8b"]
    assert (found.verdict, found.finding.measured) == (NOT_DECIDED, "")
    assert found.finding.embedded == "llama-mini 1.30× on CPU (2 threads)"


def write_one_block(results: Path, model: str, ratios: list[float], half_width: float = 0.01) -> None:
    path = results / "figure3.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        columns = ("perplexity_ratio", "perplexity_ratio_low", "perplexity_ratio_high")
        path.write_text(f"model,sparsity,block,{','.join(columns)}\n", encoding="utf-8")
    with path.open("a", encoding="utf-8") as file:
        for block, ratio in enumerate(ratios):
            file.write(f"{model},0.5,{block},{ratio},{ratio - half_width},{ratio + half_width}\n")


@pytest.mark.parametrize(
    ("last", "verdict"),
    [([1.2, 1.1, 1.15], REPRODUCED), ([1.3, 1.2, 1.1], NOT_REPRODUCED), ([1.2, 1.195, 1.2], NOT_REPRODUCED)],
)
def test_sensitivity_turns_where_intervals_say_so(tmp_path, last, verdict):
    folder = tmp_path / "paper" / "figures"
    for model in ("llama3.1-8b", "mistral-7b"):
        write_one_block(folder, model, [1.0, 1.1, 1.0])
    name = "wisparse/figure3/not-monotonic"
    assert verified_in(tmp_path)[name].reason == "no figure3 of qwen2.5-7b"
    write_one_block(folder, "qwen2.5-7b", last)
    found = verified_in(tmp_path)[name]
    assert found.verdict == verdict
    assert found.finding.measured.startswith("llama3.1-8b turns at block 1 (×1.100); mistral-7b turns")
    assert (found.reason == "") == (verdict == REPRODUCED)


@pytest.mark.parametrize(("ranks", "verdict"), [((4, 3, 2, 1), REPRODUCED), ((1, 2, 3, 4), NOT_REPRODUCED)])
def test_ranks_that_follow_each_other_are_no_mismatch(tmp_path, ranks, verdict):
    lines = ["model,block,projection,magnitude_rank,norm_rank"]
    for model in ("llama3.1-8b", "mistral-7b", "qwen2.5-7b", "llama-mini"):
        lines += [f"{model},4,down,{place},{rank}" for place, rank in enumerate(ranks, 1)]
    (tmp_path / "paper" / "figures").mkdir(parents=True)
    (tmp_path / "paper" / "figures" / "figure2.csv").write_text("\n".join([*lines, ""]), encoding="utf-8")
    found = verified_in(tmp_path)["wisparse/figure2/unaligned"]
    assert found.verdict == verdict
    assert f"qwen2.5-7b block 4: rank correlation down {1 if verdict == NOT_REPRODUCED else -1:+.2f}" in (
        found.finding.measured
    )


def test_zeros_of_a_small_model_stand_beside_the_claim_and_decide_nothing(tmp_path):
    name = "prosparse/zeros/llama2-7b"
    assert verified_in(tmp_path)[name].finding.embedded == ""
    (tmp_path / "relu").mkdir()
    rows = ["model,zeros,over_control", "llama-mini-prosparse,0.6860,0.9785", "llama-mini-relu,0.6230,0.9880"]
    (tmp_path / "relu" / "models.csv").write_text("\n".join(rows) + "\n")
    found = verified_in(tmp_path)[name]
    assert (found.verdict, found.printed) == (NOT_DECIDED, "89.32")
    assert found.finding.embedded == "llama-mini-prosparse 68.6% at 0.979 of its control's perplexity"


def test_figures_of_embedded_models_decide_nothing(tmp_path):
    for model in EMBEDDED:
        write_one_block(tmp_path / "figures", model, [1.0, 1.1, 1.0])
    found = verified_in(tmp_path)["wisparse/figure3/not-monotonic"]
    assert (found.verdict, found.finding.measured) == (NOT_DECIDED, "")
    assert "llama-mini turns at block 1 (×1.100)" in found.finding.embedded


def test_an_inconsistent_row_says_what_was_measured(tmp_path):
    name = "wisparse/table1/mistral-7b-teal-40"
    write_record(tmp_path, "teal", printed(name), model="mistral-7b", sparsity=0.4)
    found = verified_in(tmp_path)[name]
    assert found.verdict == INCONSISTENT
    assert found.reason.endswith("measured: within the tolerance")


def test_damage_is_one_line(tmp_path):
    folder = write_record(tmp_path, "wisparse", printed(WISPARSE_50))
    (folder / "items.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="delete that folder"):
        verified_in(tmp_path)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "paper.yaml").write_text("paper: [", encoding="utf-8")
    with pytest.raises(UserError, match="no valid YAML"):
        load_claims(tmp_path / "conf")
