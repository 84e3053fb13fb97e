"""Tables of whole decode steps from rows of several measurements."""

from wisparse.repro.report.summaries import steps as steps_summary
from wisparse.repro.report.summaries.steps import steps_by_batch, steps_by_sparsity, steps_of_others

ROWS = """\
shape,dtype,context,batch,bits,group,head_bits,sparsity,unread,ms,tok_s,gb_s,read_gb_s,commit
llama3.1-8b,bfloat16,128,1,8,,8,0.5,0.5,1.0,1000.0,4000,4000,old
llama3.1-8b,bfloat16,128,1,8,,8,0.5,0.5,2.0,500.0,2000,4000,new
llama3.1-8b,bfloat16,128,1,8,,8,0.5,0.5,1.6,625.0,2500,4000,new
llama3.1-8b,bfloat16,128,1,8,,8,0.5,0.5,1.8,555.6,2222,4000,new
llama3.1-8b,bfloat16,128,1,4,128,8,0.0,0.0,1.8,555.6,2222,4000,new
mistral-7b,float16,1024,1,4,128,8,0.5,0.5,1.5,666.7,1000,4000,new
llama3.1-8b,bfloat16,128,2,16,,16,0.0,0,4.0,500.0,4000,4000,new
llama3.1-8b,bfloat16,128,2,16,,16,0.5,0,4.1,487.8,3900,4000,new
llama3.1-8b,bfloat16,128,2,16,,16,0.7,0.49,3.2,625.0,2500,4000,new
llama3.1-8b,bfloat16,128,4,16,,16,0.5,0,4.1,975.6,3900,4000,new
"""


def test_of_the_newest_commit_the_fastest_counts(tmp_path, monkeypatch):
    (tmp_path / "steps.csv").write_text(ROWS)
    monkeypatch.setattr(steps_summary, "STEPS", tmp_path / "steps.csv")
    assert steps_by_sparsity().splitlines()[2:] == [
        "| llama3.1-8b | int8 | 8 bits | not measured | 625 (62%) |",
        "| llama3.1-8b | int4, groups of 128 | 8 bits | 556 (56%) | not measured |",
    ]
    assert steps_of_others().splitlines()[2:] == [
        "| mistral-7b | float16 | 1024 | not measured | not measured | not measured | not measured "
        "| not measured | 667 (25%) |"
    ]
    assert steps_by_batch().splitlines()[2:] == [
        "| llama3.1-8b | 2 | 500 | 0.98×, computed densely | 1.25× |",
        "| llama3.1-8b | 4 | not measured | not measured | not measured |",
    ]
