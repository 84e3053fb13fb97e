"""Settings under which scores overflow end in one line, as no plan can be made of them."""

from dataclasses import replace

import pytest
from wisparse.method.errors import UserError

from ..conftest import make_calibration, make_method

REFUSAL = r"thresholds of the plan is not a number; lower an exponent"


@pytest.mark.parametrize(("method", "setting"), [("was", "alpha"), ("was", "norm_order")])
def test_an_exponent_that_overflows_is_one_line(llama, method, setting):
    raised = replace(make_method(method), **{setting: 10**9})
    with pytest.raises(UserError, match=REFUSAL):
        raised.plan(make_calibration(llama), 0.5)
