"""Aims of decode speed beside what the tables of results say."""

import pytest
from wisparse.repro.report.summaries.speed_bars import Bar, speed_bars

TABLES = {
    "speed_few_bits.csv": """\
sparsity,quantisation,tok_s,baseline,baseline_tok_s
0.5,none,440,compiled-decoder,200
0.5,none,440,compiled-decoder-int4,300
0.5,int8,598,engine-dense,430
0.5,int4,900,engine-dense,590
""",
    "steps.csv": """\
shape,dtype,context,batch,bits,sparsity,ms,commit
llama3.1-8b,bfloat16,128,2,16,0.0,4.0,new
llama3.1-8b,bfloat16,128,2,16,0.5,4.01,new
llama3.1-8b,bfloat16,128,2,16,0.7,3.2,new
llama3.1-8b,bfloat16,128,4,16,0.0,4.0,new
llama3.1-8b,bfloat16,128,4,16,0.5,5.0,new
mistral-7b,bfloat16,128,4,16,0.0,1.0,new
mistral-7b,bfloat16,128,4,16,0.5,5.0,new
""",
    "heads_speed.csv": """\
device,shape,part,batch,context,kept,groups,masked,over_dense
NVIDIA H200,llama3.1-8b,step,4,1024,8,8,ffn,1.31
NVIDIA H200,llama3.1-8b,step,4,8192,4,8,all,9.9
NVIDIA H200,llama3.1-8b,step,4,1024,8,8,none,
AMD EPYC,llama3.1-8b,step,8,1024,8,8,ffn,1.5
""",
    "cpu_steps.csv": """\
instructions,shape,decoder,dtype,bits,sparsity,ms,gb_s,read_gb_s
native,smollm2-135m,engine,float32,16,0.0,20.0,18,30
native,smollm2-135m,engine,float32,16,0.5,12.0,15.3,30
native,smollm2-135m,engine,bfloat16,8,0.0,6.6,20,30
native,smollm2-135m,engine,bfloat16,8,0.5,4.0,15,30
native,smollm2-135m,llama.cpp Q8_0,,8,0.0,6.0,20,30
""",
}


@pytest.fixture
def lines(tmp_path):
    for name, text in TABLES.items():
        (tmp_path / name).write_text(text)
    return [line.strip("| ").split(" | ") for line in speed_bars(tmp_path).splitlines()[2:]]


def of(lines, where, what):
    (found,) = [line[2:] for line in lines if line[0].endswith(where) and line[1] == what]
    return found


def test_rates_of_one_row_stand_beside_baselines_of_the_same_run(lines):
    assert of(lines, "one row", "16 bits at 50 %") == ["433 tok/s", "440 tok/s", "met"]
    assert of(lines, "one row", "16 bits at 50 % over `compiled-decoder`") == ["2.00×", "2.20×", "met"]
    assert of(lines, "one row", "int8 dense") == ["430 tok/s", "430 tok/s", "met"]
    over = "int8 at 50 % over `compiled-decoder` in 16 bits"
    assert of(lines, "one row", over) == ["3.00×", "2.99×", "**missed**"]
    assert of(lines, "one row", "int4 dense over torch's int4") == ["2.00×", "1.97×", "**missed**"]
    unmeasured = [line[2:] for line in lines if "compiled-decoder" not in line[1] and " over `" in line[1]]
    assert unmeasured == [["2.00×", "not measured", "not measured"], ["3.00×", "not measured", "not measured"]]


def test_batches_count_by_their_worst_and_shared_masks_without_chosen_heads(lines):
    worst = "own masks over the dense step, at the worst of the sparsities"
    assert of(lines, "several rows", worst) == ["1.00×", "2 rows 1.00×, 4 rows 0.80×", "met by 1 of 2"]
    shared = "one mask of 50 % for all rows over the dense step"
    assert of(lines, "4 rows", shared) == ["1.30×", "gate, up and down behind 1,024 1.31×", "met"]
    assert of(lines, "8 rows", shared) == ["1.15×", "not measured", "not measured"]


def test_a_cpu_is_beside_its_bandwidth_its_byte_limit_and_llama_cpp_in_the_same_bits(lines):
    where = "built for native, smollm2-135m"
    assert of(lines, where, "dense, of the bandwidth") == ["60%", "float32 60%", "met"]
    limit = "float32 0.85×, int8 with bfloat16 0.75×"
    assert of(lines, where, "speed-up at 50 % over the byte limit") == ["0.85×", limit, "met by 1 of 2"]
    dense = ["1.00×", "int8 with bfloat16 0.91×", "**missed**"]
    assert of(lines, where, "dense over llama.cpp in the same bits") == dense
    assert of(lines, where, "at 50 % over llama.cpp in the same bits")[1:] == [
        "int8 with bfloat16 1.50×",
        "met",
    ]
    assert of(lines, "native, llama3.2-1b", "dense, of the bandwidth")[1:] == ["not measured"] * 2


def test_what_is_shown_alike_counts_as_reached():
    assert Bar("a", "b", 1.0, {"": 0.996}, "{:.2f}".format).verdict == "met"
    assert Bar("a", "b", 1.0, {"": 0.994}, "{:.2f}".format).verdict == "**missed**"
