"""Losses against milliseconds of a token: which rows of two tables meet."""

import pytest
from wisparse.repro.figures.milliseconds_plot import main, milliseconds_figure, timed
from wisparse.repro.tables.csv_rows import read_rows

LOSSES = """\
model,quantisation,method,sparsity,perplexity_ratio
small,none,dense,0.0,
small,none,teal,0.5,1.2
small,none,wina,0.5,1.1
small,int8,teal,0.5,1.21
small,int4,dense,0.0,1.8
small,none,oats,0.5,
small,int4,oats,0.0,
small,wanda,dense,0.0,2.0
"""
STEPS = """\
shape,dtype,bits,sparsity,context,batch,ms,commit
llama3.1-8b,bfloat16,16,0.0,128,1,4.0,new
llama3.1-8b,bfloat16,16,0.5,128,1,1.5,old
llama3.1-8b,bfloat16,16,0.5,128,1,2.5,new
llama3.1-8b,bfloat16,16,0.5,128,1,2.4,new
llama3.1-8b,bfloat16,16,0.5,1024,1,1.0,new
llama3.1-8b,float16,16,0.5,128,1,1.0,new
mistral-7b,bfloat16,16,0.5,128,1,1.0,new
llama3.1-8b,bfloat16,4,0.0,128,1,1.7,new
llama3.1-8b,bfloat16,16,0.5,128,2,9.0,new
"""


@pytest.fixture
def tables(tmp_path):
    for name, text in (("quantised", LOSSES), ("steps", STEPS)):
        (tmp_path / f"{name}.csv").write_text(text)
    return tmp_path / "quantised.csv", tmp_path / "steps.csv"


def test_the_best_method_of_each_format_and_sparsity_that_was_timed(tables, capsys):
    main(map(str, tables))
    folder = tables[0].parent
    assert {path.name for path in folder.iterdir() if "milliseconds" in path.name} == {
        "quantised_milliseconds.png",
        "quantised_milliseconds.svg",
    }
    points = timed(*map(read_rows, tables))
    assert points == [
        ("none", 0.0, "dense", 1.0, 4.0),
        ("none", 0.5, "wina", 1.1, 2.4),
        ("int4", 0.0, "dense", 1.8, 1.7),
    ]
    lines = milliseconds_figure(points, "small").axes[0].lines
    assert [list(line.get_xdata()) for line in lines] == [[4.0, 2.4], [1.7]]


def test_tables_without_anything_in_common_are_refused(tables, capsys):
    tables[1].write_text(STEPS.splitlines()[0] + "\n")
    with pytest.raises(SystemExit) as exit:
        main(map(str, tables))
    assert exit.value.code == 2
    assert "have no format and sparsity in common" in capsys.readouterr().err
