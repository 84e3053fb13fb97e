"""A process that decodes with llama.cpp when cpu_steps.py asks it to, in a Python that has llama-cpp-python.

    python llama_cpp_clock.py MODEL.gguf THREADS CONTEXT

Each line of its input is a number of tokens; it answers with their milliseconds as a JSON list. The cache holds
CONTEXT tokens at first, and again when it is full.
"""

from __future__ import annotations

import json
import sys
from time import perf_counter

SLOTS = 512


def main() -> None:
    """Load the model, then answer."""
    import llama_cpp  # an environment of its own: the package builds on the machine for minutes

    path, threads, context = sys.argv[1].encode(), int(sys.argv[2]), int(sys.argv[3])
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path, llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch = SLOTS, SLOTS
    settings.n_threads = settings.n_threads_batch = threads
    decoder = llama_cpp.llama_init_from_model(model, settings)
    held = SLOTS

    def decode(count: int) -> None:
        tokens = (llama_cpp.llama_token * count)(*range(100, 100 + count))
        if llama_cpp.llama_decode(decoder, llama_cpp.llama_batch_get_one(tokens, count)):
            sys.exit("llama.cpp could not decode")
        llama_cpp.llama_synchronize(decoder)

    print(json.dumps(llama_cpp.llama_print_system_info().decode()), flush=True)
    for line in sys.stdin:
        wanted, found = int(line), []
        for _ in range(wanted):
            if held == SLOTS:
                llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(decoder), True)
                decode(context)
                held = context
            started = perf_counter()
            decode(1)
            found.append(1e3 * (perf_counter() - started))
            held += 1
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
