"""Settings are checked where they are built in Python, by the types and bounds of a configuration."""

import copy
import math
import re

import pytest
from wisparse import catalogue
from wisparse.method.errors import UserError
from wisparse.method.heads.choice import PolarHeads
from wisparse.method.quantisation.calibrated import CalibratedInt4
from wisparse.method.quantisation.pruning import SensitivityPruner, Wanda
from wisparse.method.search.budget import SearchBudget
from wisparse.method.settings import BOUNDS, FROM_0
from wisparse.method.training.distillation import Distillation

from ..conftest import CONFIGURATION

GROUPS = ("method", "quantisation", "heads", "allocation")


def described(group, choice):
    """What a file of conf/ describes, ready to be built."""
    values = {
        "search": vars(SearchBudget.named("quick")),
        "allocation": catalogue._read("allocation", "evolutionary"),
        "seed": 0,
        "rotations_counted": True,
    }
    read = catalogue._read(group, choice)
    return catalogue._resolved(read | {"name": choice}, values)


def numbers(tree, path=()):
    """Places of all numbers, of `tree` and of what it holds."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from numbers(value, (*path, key))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield (*path, key)


def changed(tree, path, value):
    """A copy with another value at a place."""
    copied = copy.deepcopy(tree)
    inside = copied
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    return copied


@pytest.mark.parametrize("group", GROUPS)
def test_no_choice_takes_a_number_that_its_configuration_would_not(group):
    tried = 0
    for file in sorted((CONFIGURATION / group).glob("*.yaml")):
        tree = described(group, file.stem)
        catalogue._built(copy.deepcopy(tree))
        for path in numbers(tree):
            bound = BOUNDS.get(path[-1], FROM_0)
            for wrong in (math.nan, math.inf, -math.inf, -1, "4", True):
                with pytest.raises(UserError, match=rf"{path[-1]}.*=.* is not a .*{re.escape(bound.text[:8])}"):
                    catalogue._built(changed(tree, path, wrong))
                tried += 1
    assert tried > 60 or group == "allocation"


POLAR = described("heads", "polar")


@pytest.mark.parametrize(
    ("path", "wrong", "message"),
    [
        (("density",), 0, "PolarHeads.density=0 is not a number above 0 up to 1"),
        (("density",), 1.5, "PolarHeads.density=1.5 is not"),
        (("dense_blocks",), 1.5, "PolarHeads.dense_blocks=1.5 is not a whole number from 0 up"),
        (("training",), None, "PolarHeads.training=null is not a RouterTraining"),
        (("training", "batch"), 0, "RouterTraining.batch=0 is not a whole number from 1 up"),
        (("training", "held_out_share"), 2, "RouterTraining.held_out_share=2 is not a number from 0 to 1"),
    ],
)
def test_heads_are_refused_in_one_line(path, wrong, message):
    assert isinstance(catalogue._built(copy.deepcopy(POLAR)), PolarHeads)
    with pytest.raises(UserError, match=message):
        catalogue._built(changed(POLAR, path, wrong))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Wanda("w", "0.5", "none"), "Wanda.sparsity=0.5 is not a number in"),
        (lambda: Wanda("w", 1.0, "none"), "Wanda.sparsity=1.0 is not"),
        (lambda: SensitivityPruner("o", 0.5, "none", None, 0.01, 128), "spread=null is not a number"),
        (lambda: SensitivityPruner("o", 0.5, "none", 0.0, 0, 128), "damping=0 is not a number above 0"),
        (lambda: SensitivityPruner("o", 0.5, "none", 0.0, 0.01, 1.5), "block=1.5 is not a whole number"),
        (lambda: CalibratedInt4("i", "none", 0, True, 0.01), "CalibratedInt4.group=0 is not"),
        (lambda: CalibratedInt4("i", "none", 8, "yes", 0.01), "symmetric=yes is not true or false"),
        (lambda: Distillation(biases="inputs"), "Distillation.biases=inputs is not one of output, input"),
        (lambda: catalogue.make_method("teal", seed=-1) and catalogue.make_method("was", seed=-1), "seed=-1"),
    ],
)
def test_what_is_built_in_python_is_refused_in_one_line(make, message):
    with pytest.raises(UserError, match=message):
        make()
