"""What is begun of a model within a plan's context is refused: it would be of the sparse model."""

import pytest
import wisparse
from hydra.utils import instantiate
from wisparse.method.errors import UserError
from wisparse.method.quantisation.pruning import Wanda
from wisparse.method.quantisation.quantisers import Int8
from wisparse.method.quantised_model import quantised

from ..conftest import composed, make_calibration, make_method
from .test_library import planned

WITHIN = "a plan acts on this model already, and a (calibration|quantisation) within it would compute"


@pytest.mark.parametrize("make", ["method", "heads", "calibration", "wanda", "int8"])
def test_nothing_is_measured_of_a_model_that_a_plan_acts_on(llama, make):
    """Not by the classes beneath `wisparse.plan` either: they would measure the sparse model."""
    plan, calibration = planned(llama), make_calibration(llama)
    begin = {
        "method": lambda: make_method("teal").plan(calibration, 0.5),
        "heads": lambda: instantiate(composed("heads=polar").heads).plan(calibration, 0),
        "calibration": lambda: make_calibration(llama),
        "wanda": lambda: Wanda("wanda", 0.5, "none").weights(calibration),
        "int8": lambda: Int8("int8", lm_head="int8").weights(calibration),
    }
    with (
        wisparse.sparse(llama, plan),
        pytest.raises(UserError, match=WITHIN),
    ):
        begin[make]()
    assert make_method("teal").plan(calibration, 0.5).rules.keys() == plan.rules.keys()


def test_a_model_is_not_quantised_beneath_a_plan(llama):
    """The plan of its own weights then acted on others, without a word."""
    stored, plan = Int8("int8", lm_head="int8").weights(make_calibration(llama)), planned(llama)
    with (
        wisparse.sparse(llama, plan),
        pytest.raises(UserError, match=WITHIN),
        quantised(llama, stored),
    ):
        pass
    with (
        quantised(llama, stored),
        pytest.raises(UserError, match="quantised already"),
        quantised(llama, stored),
    ):
        pass
