"""Plots of speed: which rows share a plot, and what its lines hold."""

from __future__ import annotations

import pytest
from wisparse.repro.figures.speed_plots import heads_figure, main, speed_figure, write_plots
from wisparse.repro.tables.csv_rows import read_rows

SPEED = """\
device,model,method,realised_sparsity,batch,prompt,dtype,quantisation,baseline,speedup,byte_limit_speedup
NVIDIA H200,m,teal,0.5,1,5,bfloat16,none,engine-dense,1.6,1.9
NVIDIA H200,m,teal,0.25,1,5,bfloat16,none,engine-dense,1.2,1.3
NVIDIA H200,m,teal,0.5,1,5,bfloat16,int8,engine-dense,1.4,1.8
NVIDIA H200,m,dense,0.0,1,5,bfloat16,int8,engine-dense,1.0,1.0
NVIDIA H200,m,teal,0.5,2,5,bfloat16,none,engine-dense,0.9,1.3
NVIDIA H200,m,teal,0.5,1,5,bfloat16,none,eager,9.0,1.9
NVIDIA H200,m,teal,0.5,1,5,float16,none,engine-dense,1.7,1.9
"""
HEADS = """\
device,shape,part,batch,context,kept,groups,masked,speedup
a card,m,step,8,2048,4,8,none,1.2
a card,m,step,8,1024,4,8,none,1.1
a card,m,step,16,1024,4,8,none,1.3
a card,m,step,16,1024,4,8,ffn,1.4
a card,m,step,16,1024,8,8,none,
a card,m,attention,16,1024,4,8,none,1.7
"""


@pytest.fixture
def folder(tmp_path):
    for name, text in (("speed", SPEED), ("heads_speed", HEADS)):
        (tmp_path / f"{name}.csv").write_text(text)
    return tmp_path


def lines(figure):
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in figure.axes[0].lines
        if not line.get_label().startswith("_")
    }


def test_no_plot_mixes_widths_of_weights_or_formats_of_numbers(folder, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "wisparse.repro.figures.speed_plots.write_figure", lambda figure, _: drawn.append(figure) or []
    )
    write_plots(folder)
    assert [lines(figure).get("teal") for figure in drawn[:2]] == [([25, 50], [1.2, 1.6]), ([50], [1.4])]
    assert drawn[1].get_suptitle() == "NVIDIA H200, int8"


def test_a_model_s_own_weights_are_not_in_the_title(folder):
    rows = [
        row for row in read_rows(folder / "speed.csv") if row["quantisation"] == "none" and row["batch"] == "1"
    ]
    rows = [row for row in rows if (row["baseline"], row["dtype"]) == ("engine-dense", "bfloat16")]
    figure = speed_figure(rows)
    assert lines(figure)["byte limit"] == ([25, 50], [1.3, 1.9])
    assert figure.get_suptitle() == "NVIDIA H200"


def test_steps_over_chosen_heads_are_a_line_for_each_batch(folder):
    figure = heads_figure([row for row in read_rows(folder / "heads_speed.csv") if row["speedup"]][:3])
    assert lines(figure) == {"batch 8": ([1024, 2048], [1.1, 1.2]), "batch 16": ([1024], [1.3])}


def test_no_line_over_chosen_heads_is_of_two_shapes(folder):
    rows = [row for row in read_rows(folder / "heads_speed.csv") if row["speedup"]][:3]
    other = [row | {"shape": "n", "speedup": "2.0"} for row in rows]
    figure = heads_figure([*rows, *other])
    assert lines(figure) == {"batch 8": ([1024, 2048], [1.1, 1.2]), "batch 16": ([1024], [1.3])}
    assert [axis.get_title() for axis in figure.axes] == ["m: 4 of 8 groups", "n: 4 of 8 groups"]
    assert figure.get_suptitle() == "a card"
    assert heads_figure(rows).get_suptitle() == "a card, m's shapes"


@pytest.mark.slow
def test_every_plot_is_written_under_the_name_of_its_device_and_weights(folder, capsys):
    main([str(folder)])
    names = {path.stem for path in folder.glob("*.png")}
    assert names == {path.stem for path in folder.glob("*.svg")}
    assert names == {"speed-nvidia-h200", "speed-nvidia-h200-int8", "heads-a-card"}


def test_a_folder_without_rows_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        main([str(tmp_path)])
    assert exit.value.code == 2
    assert "holds no speed.csv, kernels.csv or heads_speed.csv with rows" in capsys.readouterr().err
