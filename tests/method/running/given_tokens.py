"""Token ids that tests give to a model, and what its projections then read."""

from dataclasses import replace

import torch
from wisparse.method.hooks import hooked
from wisparse.method.running.apply import applied

from ...conftest import make_protocol


def ids_of(rows, length, seed=5):
    return torch.randint(1, 128, (rows, length), generator=torch.Generator().manual_seed(seed))


def inputs_of(model, plan, ids, rows_sharing=1, prompts=None):
    """What q of the first block multiplies, (rows, length, channels), and a report; prompts: lengths."""
    found = []
    policy = replace(make_protocol("decode_only" if prompts else "all"), rows_sharing=rows_sharing)
    with applied(model, plan, policy) as session:
        session.prompt_lengths = torch.tensor(prompts) if prompts else None
        linear = model.get_submodule("model.layers.0.self_attn.q_proj")
        with hooked([linear.register_forward_hook(lambda _, inputs, __: found.append(inputs[0]))]):
            model(input_ids=ids)
        return found[0], session.report()
