"""The blocks of docs/method.md: what was measured of own methods, and what was tried."""

from pathlib import Path

from wisparse.repro.report.summaries.own import generation_table, own_table, tried_table

HEAD = (
    "method,sparsity,seed,protocol,search_budget,suite,perplexity,average,rise_share,status,compared,reference,"
    "trained,plan_seconds"
)


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_own_methods_are_means_over_the_seeds_by_protocol(tmp_path):
    table = own_table(
        write(
            tmp_path / "method.csv",
            HEAD,
            "teal,0.5,0,half,medium,wikitext,25.0,,,measured,,teal,False,4",
            "equal_loss_trained,0.5,0,half,medium,wikitext,23.0,,0.6,measured,2 of 2,teal,True,100",
            "equal_loss_trained,0.5,1,half,medium,wikitext,24.0,,0.7,measured,2 of 2,teal,True,120",
            "equal_loss_trained,0.5,0,half,medium,english,24.0,66,0.5,measured,2 of 2,teal,True,110",
            "teal,0.5,0,all,medium,wikitext,29.0,,,measured,,teal,False,4",
        )
    ).splitlines()
    trained = next(line for line in table if line.startswith("| equal_loss_trained"))
    cells = [cell.strip() for cell in trained.strip("|").split("|")]
    assert cells[:4] == ["equal_loss_trained", "half", "yes", "1 to 2"]
    assert cells[4] == "66.0 (1 seed)"
    assert cells[6] == "23.50"
    assert cells[8] == "0.65"
    assert cells[10] == "0.50 (1 seed)"
    assert cells[-1] == "110"
    assert [line.split("|")[2].strip() for line in table[2:]] == ["half", "half", "all"]


def test_without_the_table_nothing_is_claimed(tmp_path):
    assert own_table(tmp_path / "absent.csv") == "*Not measured.*"


def test_settings_tried_stand_in_one_row_a_sparsity(tmp_path):
    path = write(
        tmp_path / "tried.csv",
        "series,setting,sparsity,text,rise_share,between_cells",
        "1,teal,0.5,held out,,",
        "1,ours,0.5,held out,0.611,true",
        "1,ours,0.5,other,0.9,false",
        "1,ours,0.6,held out,0.7,true",
        '2,newer,0.6,"WikiText-2 validation, articles apart",0.5,true',
        "2,newer,0.6,other,0.8,true",
    )
    assert tried_table(path, apart=True).splitlines() == [
        "|  | sparsity | WikiText-2 validation, articles apart | other |",
        "|---|---:|---:|---:|",
        "| newer | 60% | 0.50 | 0.80 |",
    ]
    table = tried_table(path).splitlines()
    assert table[0] == "|  | sparsity | held out | other |"
    assert table[2:] == ["| ours | 50% | 0.61 | *0.90* |", "| ours | 60% | 0.70 | not measured |"]


def test_generated_text_is_shown_in_short(tmp_path):
    path = write(
        tmp_path / "generation.csv",
        "model,protocol,method,trained,sparsity,seeds,realised_sparsity,bytes_per_token,same_tokens,unchanged,"
        "agreement,divergence_1_8,sum,sum_vote,sum_consistency",
        "m,half,teal,False,0.5,1,0.49,2000000,12.5,0.1,0.75,0.25,50,75,0.6",
    )
    heads, _, row = generation_table(path).splitlines()
    assert "KL, 1-8" in heads
    assert "Protocol" not in heads
    assert "| 12.5 |" in row
    assert generation_table(tmp_path / "absent.csv") == "*Not measured.*"
