// The smallest score that per-token top-k keeps: one thread block for each list, one token. Scores are not negative, so
// their order is that of their bits; three digits of these are counted one after the other, each only where the digits
// before are those of the score that is looked for. A score of zero is never kept, so that the smallest is a normal
// number. Compiled at run time by select.py, which defines the constants in capitals:
//
// IN           channels                  WARPS     warps of a thread block
// CLUSTER      1                         WRITE_X   1: x is written by the first thread block
// BOUNDED      1: k is how many scores reach 1, from `fewest` to `kept`; 0: it is `kept`
// TOGETHER     1: the source is |x| of several rows together, float32
// NORM, EPSILON, SQUARES  see norm.h
// FLOAT16      1: float16 instead of bfloat16

#ifndef EMULATED
#include "device.h"
#endif
constexpr int THREADS = WARPS * 32;
#include "norm.h"

constexpr int STEPS = (IN + THREADS - 1) / THREADS;
constexpr int DIGITS = 3;
constexpr int BITS[DIGITS] = {11, 10, 10};  // of the 31 below the sign
constexpr int LOWEST[DIGITS] = {20, 10, 0};
constexpr int BINS = 1 << 11;
constexpr unsigned SMALLEST_NORMAL = 0x00800000u, INFINITE = 0x7f800000u;

struct Shared {
    int bins[DIGITS][BINS];
    int totals[WARPS];
    int digit, below;
    float squares[SQUARE_SUMS];
};

// The digit of the `wanted`-th highest score, and how many scores have a higher one; the same in all threads.
WS_DEVICE void find_digit(Shared& s, const int* bins, int count, int wanted, int thread) {
    const int each = (count + THREADS - 1) / THREADS, warp = thread / 32, lane = thread % 32;
    const int last = count - 1 - thread * each;  // a thread's bins, the highest first
    int own = 0;
    for (int bin = last; bin > last - each && bin >= 0; --bin) own += bins[bin];
    int higher = 0, total = own;  // of the lanes before, and of all lanes met so far
#pragma unroll
    for (int apart = 1; apart < 32; apart *= 2) {
        const int other = warp_exchange(total, apart);
        higher += lane & apart ? other : 0;
        total += other;
    }
    if (lane == 0) s.totals[warp] = total;
    block_barrier();
    higher += warp_sum(lane < warp ? s.totals[lane] : 0);  // there are no more warps than lanes
    if (higher < wanted && wanted <= higher + own) {
        int bin = last;
        for (; higher + bins[bin] < wanted; --bin) higher += bins[bin];
        s.digit = bin;
        s.below = higher;
    }
    block_barrier();
}

WS_KERNEL(THREADS, 1) select_kernel(const void* source, const float* squares, const unsigned short* gain,
                                 const float* score_weights, const int* kept, const int* fewest, float* smallest,
                                 unsigned short* x_out) {
    WS_SHARED(Shared, s);
    const int thread = thread_index(), list = block_index();
    float weight[STEPS], scale[STEPS];
    unsigned bits[STEPS];
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
        const int channel = step * THREADS + thread;
        weight[step] = channel < IN ? score_weights[list * IN + channel] : 0.0f;
        scale[step] = NORM && channel < IN ? widened(gain[channel]) : 0.0f;
    }
    int k = kept[list];
    const int least = BOUNDED ? fewest[list] : 0;
    for (int bin = thread; bin < DIGITS * BINS; bin += THREADS) s.bins[bin / BINS][bin % BINS] = 0;
    block_barrier();
    wait_for_producer();
    start_consumer();

    float x[STEPS];
    Squares own_squares;
    if (NORM) own_squares.ask(squares, thread / 32, thread % 32);
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
        const int channel = step * THREADS + thread;
        const float* together = static_cast<const float*>(source);
        x[step] = channel >= IN ? 0.0f : TOGETHER ? from_producer(together + channel) : from_source(source, channel);
    }
    if (NORM) {
        own_squares.leave(s.squares, thread / 32, thread % 32);
        block_barrier();
        const float inverse = inverse_norm(s.squares);
#pragma unroll
        for (int step = 0; step < STEPS; ++step) x[step] = normalised(x[step], inverse, scale[step]);
    }
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
        const int channel = step * THREADS + thread;
        if (WRITE_X && list == 0 && channel < IN) x_out[channel] = rounded(x[step]);
        bits[step] = bits_of_float(fabsf(x[step]) * weight[step]) & 0x7fffffffu;
    }

    if (BOUNDED) {
        int reached = 0;
#pragma unroll
        for (int step = 0; step < STEPS; ++step)
            reached += step * THREADS + thread < IN && float_of_bits(bits[step]) >= 1.0f;
        reached = warp_sum(reached);
        if (thread % 32 == 0) s.totals[thread / 32] = reached;
        block_barrier();
        reached = warp_sum(thread % 32 < WARPS ? s.totals[thread % 32] : 0);
        reached = reached < least ? least : reached;
        k = reached < k ? reached : k;
    }

    unsigned found = 0;  // the digits that are known, in their places
    int wanted = k < 1 ? 1 : k < IN ? k : IN;
#pragma unroll
    for (int digit = 0; digit < DIGITS; ++digit) {
        const unsigned known = digit == 0 ? 0u : ~0u << LOWEST[digit] + BITS[digit];
#pragma unroll
        for (int step = 0; step < STEPS; ++step)
            if (step * THREADS + thread < IN && (bits[step] & known) == found)
                count_in_block(&s.bins[digit][bits[step] >> LOWEST[digit] & (1u << BITS[digit]) - 1u]);
        block_barrier();
        find_digit(s, s.bins[digit], 1 << BITS[digit], wanted, thread);
        found |= static_cast<unsigned>(s.digit) << LOWEST[digit];
        wanted -= s.below;
    }
    if (k >= IN || found < SMALLEST_NORMAL) found = SMALLEST_NORMAL;
    if (thread == 0) smallest[list] = float_of_bits(k <= 0 ? INFINITE : found);
}
