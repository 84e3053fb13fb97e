import pytest
import torch

from ..conftest import CONFIGURATION, make_protocol

PROTOCOLS = sorted(path.stem for path in (CONFIGURATION / "protocol").glob("*.yaml"))


def dense_count(name, length, prompt=None):
    real = torch.ones(1, length, dtype=torch.bool)
    lengths = None if prompt is None else torch.tensor([prompt])
    sparse = make_protocol(name).sparse_positions(real, lengths)[0]
    dense = int((~sparse).sum())
    assert sparse.tolist() == [False] * dense + [True] * (length - dense)
    return dense


@pytest.mark.parametrize(
    ("name", "length", "dense"),
    [
        ("all", 7, 0),
        ("chess", 7, 0),
        ("skip_first", 7, 1),
        ("half", 7, 4),  # n - floor(n / 2)
        ("half", 8, 4),
        ("teal", 1, 1),
        ("wina", 100, 1),  # ceil(1 %)
        ("wina", 101, 2),
        ("rsparse", 10, 9),
        ("rsparse", 70, 63),
    ],
)
def test_dense_positions_by_hand(name, length, dense):
    assert dense_count(name, length) == dense


def test_decode_only_leaves_the_prompt_dense():
    assert dense_count("decode_only", 9, prompt=6) == 6
    assert dense_count("decode_only", 9) == 9  # all of it is prompt
    assert dense_count("teal_speed", 9, prompt=6) == 6


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_never_counted(name, side):
    protocol = make_protocol(name)
    length, padding = 20, 7
    alone = protocol.sparse_positions(torch.ones(1, length, dtype=torch.bool), torch.tensor([12]))
    real = torch.zeros(1, length + padding, dtype=torch.bool)
    place = slice(padding, None) if side == "left" else slice(0, length)
    real[:, place] = True
    padded = protocol.sparse_positions(real, torch.tensor([12]))
    assert torch.equal(padded[:, place], alone)
    assert not padded[~real].any()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_says_what_it_does(name):
    protocol = make_protocol(name)
    assert protocol.name == name
    assert "generated tokens sparse" in protocol.describe()
