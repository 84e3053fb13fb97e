// Logits of one token: the normalised residual stream times each row of lm_head (ROWS, IN), whose columns lie beside each
// other as models store them. Every thread block normalises the stream for itself; a warp takes neighbouring rows, whose
// first bytes are on their way before the stream is there. Compiled at run time by head.py, which defines the constants in
// capitals:
//
// IN           channels                             ROWS      rows of the weight, the vocabulary
// BLOCKS       thread blocks                        WARPS     warps of a thread block
// UNROLL       vectors of a row that a lane has on their way, for each of two rows
// CLUSTER      1                                    RESIDENT  thread blocks that a multiprocessor has registers for
// NORM (1), EPSILON, SQUARES  see norm.h
// FLOAT16      1: float16 instead of bfloat16
//
// The sums are added in a fixed order: over a lane's columns, over lanes.

#ifndef EMULATED
#include "device.h"
#endif
constexpr int THREADS = WARPS * 32;
#include "norm.h"

constexpr int STEPS = (IN + THREADS - 1) / THREADS;
constexpr int SPAN = 32 * 8;  // columns that a warp reads with one load
constexpr int VECTORS = (IN + SPAN - 1) / SPAN;
constexpr int AT_ONCE = 2;  // rows

struct Shared {
    alignas(16) unsigned short x[VECTORS * SPAN];  // zeros behind the last channel
    float squares[SQUARE_SUMS];
};

using Vectors = Words<4>[AT_ONCE][UNROLL];

// Vectors of neighbouring rows, zeros behind the last row and column.
WS_DEVICE void ask(Vectors& rows, const unsigned short* weight, int row, int last, int vector, int lane) {
#pragma unroll
    for (int turn = 0; turn < UNROLL; ++turn) {
        const int column = (vector + turn) * SPAN + lane * 8;
#pragma unroll
        for (int each = 0; each < AT_ONCE; ++each)
            rows[each][turn] = streamed_words<4>(weight + static_cast<size_t>(row + each) * IN + column,
                                                 row + each < last && column < IN);
    }
}

WS_KERNEL(THREADS, RESIDENT) head_kernel(const unsigned short* weight, const void* source, const float* squares,
                                         const unsigned short* gain, int* length, float* logits) {
    WS_SHARED(Shared, s);
    const int thread = thread_index(), warp = thread / 32, lane = thread % 32;
    constexpr long long ALL = static_cast<long long>(BLOCKS) * WARPS;
    const long long own = block_index() * WARPS + warp;
    const int first = own * ROWS / ALL, last = (own + 1) * ROWS / ALL;
    Vectors rows;
    ask(rows, weight, first, last, 0, lane);
    float x[STEPS], scale[STEPS];
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
        const int channel = step * THREADS + thread;
        scale[step] = channel < IN ? widened(gain[channel]) : 0.0f;
    }
    wait_for_producer();
    start_consumer();
    Squares own_squares;
    own_squares.ask(squares, warp, lane);
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
        const int channel = step * THREADS + thread;
        x[step] = from_source(source, channel < IN ? channel : IN - 1);
    }
    own_squares.leave(s.squares, warp, lane);
    block_barrier();
    const float inverse = inverse_norm(s.squares);
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
        const int channel = step * THREADS + thread;
        if (channel < IN) s.x[channel] = rounded(normalised(x[step], inverse, scale[step]));
    }
    for (int channel = IN + thread; channel < VECTORS * SPAN; channel += THREADS) s.x[channel] = 0;
    if (block_index() == 0 && thread == 0) ++*length;
    block_barrier();

    for (int row = first; row < last; row += AT_ONCE) {
        float sums[AT_ONCE] = {};
        for (int vector = 0; vector < VECTORS; vector += UNROLL) {
            Vectors now;
#pragma unroll
            for (int turn = 0; turn < UNROLL; ++turn)
#pragma unroll
                for (int each = 0; each < AT_ONCE; ++each) now[each][turn] = rows[each][turn];
            const bool ends = vector + UNROLL >= VECTORS;
            ask(rows, weight, ends ? row + AT_ONCE : row, last, ends ? 0 : vector + UNROLL, lane);
#pragma unroll
            for (int turn = 0; turn < UNROLL; ++turn) {
                if (vector + turn >= VECTORS) break;
                const Row own_x = *reinterpret_cast<const Row*>(s.x + (vector + turn) * SPAN + lane * 8);
#pragma unroll
                for (int word = 0; word < 4; ++word) {
                    const float lower = widened(own_x.words[word] & 0xffffu), upper = widened(own_x.words[word] >> 16);
#pragma unroll
                    for (int each = 0; each < AT_ONCE; ++each) {
                        sums[each] += lower * widened(now[each][turn].words[word] & 0xffffu);
                        sums[each] += upper * widened(now[each][turn].words[word] >> 16);
                    }
                }
            }
        }
#pragma unroll
        for (int each = 0; each < AT_ONCE; ++each) {
            const float sum = warp_sum(sums[each]);
            if (lane == 0 && row + each < last) logits[row + each] = widened(rounded(sum));
        }
    }
}
