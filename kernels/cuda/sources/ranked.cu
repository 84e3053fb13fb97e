// Neurons of one token that scores choose, of proxies (Prox, arXiv 2607.27591) or of a router (LTE, arXiv 2402.06126): a
// thread block reads the rows of gate and of up of those of its neurons whose score is kept. All others are zero, and nothing of them is read but the score.
// Compiled at run time by ranked.py, which defines the constants in capitals:
//
// IN        channels, elements of a row, a multiple of 8
// WIDTH     neurons                      NEURONS   neurons of a thread block, 32 at most
// WARPS     warps of a thread block      UNROLL    parts of a row that a lane has on their way
// CLUSTER   1                            HIDDEN    see activation.h
// FLOAT16   1: float16 instead of bfloat16
//
// The sums are added in a fixed order: over a lane's columns, over lanes.

#ifndef EMULATED
#include "device.h"
#endif
constexpr int THREADS = WARPS * 32;
#include "activation.h"
#include "neuron_rows.h"

struct Shared {
    alignas(16) unsigned short x[IN];
    int computed[32];
    unsigned short hidden[NEURONS];
};

WS_KERNEL(THREADS, 1) ranked_kernel(const unsigned short* x, const unsigned short* scores, const float* smallest,
                                    const unsigned short* gate_rows, const unsigned short* up_rows,
                                    unsigned short* hidden) {
    WS_SHARED(Shared, s);
    const int thread = thread_index(), first = block_index() * NEURONS, neuron = first + thread;
    wait_for_producer();
    start_consumer();
    for (int channel = thread; channel < IN; channel += THREADS) s.x[channel] = x[channel];
    // NaN compares false, so a broken score is kept and shows in the output.
    if (thread < 32)
        s.computed[thread] = thread < NEURONS && neuron < WIDTH && !(fabsf(widened(scores[neuron])) < smallest[0]);
    if (thread < NEURONS) s.hidden[thread] = 0;
    block_barrier();
    compute_neurons(first, gate_rows, up_rows, hidden, s);
}
