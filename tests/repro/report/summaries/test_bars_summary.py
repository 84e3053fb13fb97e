"""Aims beside what was reached."""

from wisparse.repro.report.summaries.bars import bars_table, reached

HEAD = "method,sparsity,seed,protocol,suite,rise_share,status,compared,trained"


def row(share: str, compared: str = "1 of 1") -> dict[str, str]:
    return {"rise_share": share, "compared": compared}


def test_an_aim_is_met_by_the_mean_over_the_seeds():
    assert reached([row("0.60"), row("0.78")], 0.7) == "met: 0.69 (2 seeds)"
    assert reached([row("0.75")], 0.7) == "missed: 0.75 (1 seed)"
    assert reached([row("", "not comparable at equal bytes")], 0.7) == "not comparable at equal bytes"
    assert reached([], 0.7) == "not measured"


def test_what_is_trained_has_aims_of_its_own(tmp_path):
    path = tmp_path / "own.csv"
    lines = [
        "equal_loss_folded,0.5,0,half,wikitext,0.6,measured,1 of 1,False",
        "equal_loss_trained,0.5,0,half,wikitext,0.6,measured,1 of 1,True",
        "equal_loss_folded,0.6,0,all,english,0.66,measured,1 of 1,False",
        "equal_loss,0.6,0,all,wikitext,0.2,measured,1 of 1,False",
    ]
    path.write_text("\n".join([HEAD, *lines]) + "\n")
    found = {
        (cells[0], cells[2], cells[3]): cells[5:]
        for line in bars_table({"prose": path}).splitlines()[2:]
        for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
    }
    assert len(found) == 8
    assert found["training-free", "half", "50%"] == ["met: 0.60 (1 seed)", "not measured"]
    assert found["lightly trained", "half", "50%"] == ["missed: 0.60 (1 seed)", "not measured"]
    assert found["training-free", "all", "60%"] == ["not measured", "missed: 0.66 (1 seed)"]
