// Neurons of one token whose signs say that their gate is above zero (SparseInfer, arXiv 2411.12692): a thread block
// counts the unlike signs of x and of its neurons' rows of gate, reads the rows of gate of those that have few, and the
// rows of up of those whose gate is not zero. All others are zero, and nothing of them is read but signs.
// Compiled at run time by predicted.py, which defines the constants in capitals:
//
// IN           channels, elements of a row, a multiple of 8
// WIDTH        neurons                      NEURONS   neurons of a thread block, 32 at most
// WARPS        warps of a thread block      UNROLL    parts of a row that a lane has on their way
// SIGN_WORDS   words of a row's packed signs, a multiple of 4; what pads it is 0
// CLUSTER      1                            HIDDEN    see activation.h
// NORM, EPSILON, SQUARES  see norm.h
// FLOAT16      1: float16 instead of bfloat16
//
// The sums are added in a fixed order: over a lane's columns, over lanes.

#ifndef EMULATED
#include "device.h"
#endif
constexpr int THREADS = WARPS * 32;
#include "norm.h"
#include "activation.h"
#include "neuron_rows.h"

constexpr int STEPS = (IN + THREADS - 1) / THREADS;
constexpr int EACH = (NEURONS + WARPS - 1) / WARPS;  // neurons whose signs a warp counts
constexpr int SIGN_ROWS = SIGN_WORDS / 4;
constexpr int SIGN_TURNS = (SIGN_ROWS + 31) / 32;

struct Shared {
    alignas(16) unsigned short x[STEPS * THREADS];
    alignas(16) unsigned signs[STEPS * WARPS + 3];
    float squares[SQUARE_SUMS];
    int computed[32];
    unsigned short hidden[NEURONS];
};

WS_KERNEL(THREADS, 1) predicted_kernel(const void* source, const float* squares, const unsigned short* gain,
                                    const unsigned* signs, const int* limit, const unsigned short* gate_rows,
                                    const unsigned short* up_rows, unsigned short* hidden) {
    WS_SHARED(Shared, s);
    const int thread = thread_index(), warp = thread / 32, lane = thread % 32;
    const int first = block_index() * NEURONS;
    // Signs of the weights are there before the activation is.
    Row own_signs[EACH][SIGN_TURNS];
#pragma unroll
    for (int each = 0; each < EACH; ++each) {
        const int neuron = each * WARPS + warp;
#pragma unroll
        for (int turn = 0; turn < SIGN_TURNS; ++turn) {
            const int at = turn * 32 + lane;
            own_signs[each][turn] = Row{};
            if (neuron < NEURONS && first + neuron < WIDTH && at < SIGN_ROWS)
                own_signs[each][turn] = streamed_row(reinterpret_cast<const unsigned short*>(
                    signs + static_cast<size_t>(first + neuron) * SIGN_WORDS + at * 4));
        }
    }
    float scale[STEPS];
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
        const int channel = step * THREADS + thread;
        scale[step] = NORM && channel < IN ? widened(gain[channel]) : 0.0f;
    }
    const int most = limit[0];
    if (thread < 32) s.computed[thread] = 0;
    if (thread < NEURONS) s.hidden[thread] = 0;
    if (thread < 3) s.signs[STEPS * WARPS + thread] = 0;
    wait_for_producer();
    start_consumer();

    float x[STEPS];
    Squares own_squares;
    if (NORM) own_squares.ask(squares, warp, lane);
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
        const int channel = step * THREADS + thread;
        x[step] = channel < IN ? from_source(source, channel) : 0.0f;
    }
    float inverse = 0.0f;
    if (NORM) {
        own_squares.leave(s.squares, warp, lane);
        block_barrier();
        inverse = inverse_norm(s.squares);
    }
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
        if (NORM) x[step] = normalised(x[step], inverse, scale[step]);
        s.x[step * THREADS + thread] = rounded(x[step]);
        const unsigned negative = warp_ballot(step * THREADS + thread < IN && x[step] < 0.0f);
        if (lane == 0) s.signs[step * WARPS + warp] = negative;
    }
    block_barrier();

#pragma unroll
    for (int each = 0; each < EACH; ++each) {
        const int neuron = each * WARPS + warp;
        int unlike = 0;
#pragma unroll
        for (int turn = 0; turn < SIGN_TURNS; ++turn) {
            const int at = turn * 32 + lane;
            if (at >= SIGN_ROWS) break;
#pragma unroll
            for (int word = 0; word < 4; ++word)
                unlike += bits_of(own_signs[each][turn].words[word] ^ s.signs[at * 4 + word]);
        }
        unlike = warp_sum(unlike);
        if (lane == 0 && neuron < NEURONS && first + neuron < WIDTH) s.computed[neuron] = unlike <= most;
    }
    block_barrier();

    compute_neurons(first, gate_rows, up_rows, hidden, s);
}
