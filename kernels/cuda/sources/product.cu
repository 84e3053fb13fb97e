// One token's product with a weight (in, out) whose dropped channels are rows that are never read. Every thread block
// lists the channels it keeps itself, in shared memory, so that no launch is needed between a product and the
// activation it reads. Compiled at run time by product.py, which defines the constants in capitals:
//
// IN           channels, rows of the weight          COLUMNS   columns of the weight, elements of one row
// TILE         columns of a thread block             WARPS     warps of a thread block
// CLUSTER      thread blocks that share a tile, each a part of the channels
// UNROLL       rows that a lane has on their way     SHARE     channels of one thread block
// RESIDENT     thread blocks that a multiprocessor has registers for
// NORM, EPSILON, SQUARES  see norm.h
// TOP_K        1: bounds are weights of a score |x|·w, and channels are kept whose score is not below `smallest`
// STORE, HIDDEN, RESIDUAL  one of them is not 0: what becomes of the sums (see the end of the kernel); HIDDEN says by
//              which activation (activation.h)
// BIAS         1: `bias` is added to the sums
// WIDTHS       columns of each projection, as an initializer list; HIDDEN has gate and up of WIDTH columns each
// FLOAT16      1: float16 instead of bfloat16
// KEEP_ALL     1: all channels are kept, and there are no bounds
// AHEAD        then: rows of a lane that are brought into the second cache before the activation is there
// BITS         bits of a stored value: 16 (rows.h), 8 or 4 (few_bits.h, which has more constants)
//
// The sums are added in a fixed order: over a warp's rows, over warps, over thread blocks of a cluster.

#ifndef EMULATED
#include "device.h"
#endif
constexpr int THREADS = WARPS * 32;
#include "norm.h"
#include "activation.h"

constexpr int LISTS = HIDDEN ? 2 : 1;
constexpr int STEPS = (SHARE + THREADS - 1) / THREADS;
constexpr int PROJECTION_WIDTHS[] = WIDTHS;
constexpr int PROJECTIONS = HIDDEN ? 1 : sizeof(PROJECTION_WIDTHS) / sizeof(int);

#if BITS == 16
#include "rows.h"
#else
#include "few_bits.h"
#endif

struct Shared {
    Rows rows;  // kept channels of each list, and what their rows are multiplied with
    float sums[LISTS][WARPS][TILE];
    float parts[CLUSTER][LISTS][TILE];
    float squares[SQUARE_SUMS];
    Arrivals arrivals;  // of the parts
};

WS_KERNEL(THREADS, RESIDENT) product_kernel(const void* values, const void* scales, const unsigned char* zeros,
                                         const float* column_scales, const void* source, const float* squares,
                                         const unsigned short* gain, const float* bounds, const float* smallest,
                                         const unsigned short* bias, void* out, float* out_squares) {
    WS_SHARED(Shared, s);
    const int thread = thread_index(), warp = thread / 32, lane = thread % 32;
    const int rank = block_index() % CLUSTER;
    int tile = block_index() / CLUSTER, projection = 0, start = 0;
#pragma unroll
    for (int earlier = 0; earlier + 1 < PROJECTIONS; ++earlier) {
        const int tiles = (PROJECTION_WIDTHS[earlier] + TILE - 1) / TILE;
        if (projection == earlier && tile >= tiles) {
            tile -= tiles;
            start += PROJECTION_WIDTHS[earlier];
            ++projection;
        }
    }
    if (CLUSTER > 1) {
        if (rank == 0 && thread == 0) expect(s.arrivals, CLUSTER * LISTS * TILE * sizeof(float));
        cluster_announce();  // a neighbour's shared memory may be written once it has started
    }

    // Parameters are read before the wait for the kernel that writes the activation.
    const int begin = rank * SHARE, end = begin + SHARE < IN ? begin + SHARE : IN;
    const Weight weight{values, scales, zeros, column_scales};
    const int width = HIDDEN ? WIDTH : PROJECTION_WIDTHS[projection];
    float bound[LISTS][STEPS], scale[STEPS], x[STEPS];
    Factors factors[LISTS];
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
        const int channel = begin + step * THREADS + thread;
        const bool real = channel < end;
#pragma unroll
        for (int list = 0; list < LISTS; ++list) {
            bound[list][step] = real && !KEEP_ALL ? bounds[(projection + list) * IN + channel] : 0.0f;
            // No branch: what is converted in one would be waited for.
            factors[list].read(weight, projection + list, start + list * WIDTH, width, tile, step,
                               real ? channel : end - 1);
        }
        scale[step] = NORM && real ? widened(gain[channel]) : 0.0f;
    }
    const int to = tile * TILE + thread;
    const bool mine = thread < TILE && to < width, finishes = mine && rank == 0;
    float column_scale[LISTS], added[LISTS] = {}, before = 0.0f;
#pragma unroll
    for (int list = 0; list < LISTS; ++list)
        column_scale[list] = mine ? of_column(weight, start + list * WIDTH + to) : 0.0f;
    if (BIAS && finishes)
        for (int list = 0; list < LISTS; ++list) added[list] = widened(bias[start + list * WIDTH + to]);
    if (KEEP_ALL)
        for (int list = 0; list < LISTS; ++list)
            ask_ahead(weight, start + list * WIDTH, width, tile, begin, end, warp, lane);
    wait_for_producer();
    start_consumer();
    if (RESIDUAL && finishes) before = from_producer(static_cast<const float*>(out) + to);
    Squares own_squares;
    if (NORM) own_squares.ask(squares, warp, lane);
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
        const int channel = begin + step * THREADS + thread;
        x[step] = from_source(source, channel < end ? channel : end - 1);  // what is beyond the end is not kept
    }
    if (NORM) {
        own_squares.leave(s.squares, warp, lane);
        block_barrier();
        const float inverse = inverse_norm(s.squares);
#pragma unroll
        for (int step = 0; step < STEPS; ++step) x[step] = normalised(x[step], inverse, scale[step]);
    }

    unsigned kept[LISTS][STEPS];
#pragma unroll
    for (int list = 0; list < LISTS; ++list) {
        const float cut = TOP_K ? from_producer(smallest + projection + list) : 0.0f;
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            const bool real = begin + step * THREADS + thread < end;
            // NaN compares false, so a broken activation is kept and shows in the output.
            const bool dropped = TOP_K ? fabsf(x[step]) * bound[list][step] < cut : fabsf(x[step]) < bound[list][step];
            kept[list][step] = warp_ballot(real && (KEEP_ALL || !dropped));
        }
    }
    Lists lists;
    lists.begin(s.rows, kept, weight, start, width, tile, begin, warp, lane);
    lists.fill(s.rows, kept, factors, x, begin, warp, lane);

    lists.multiply(s.rows, weight, start, width, tile, factors, warp, lane, s.sums);
    block_barrier();

    float sum[LISTS] = {};
    if (thread < TILE) {
#pragma unroll
        for (int list = 0; list < LISTS; ++list) {
#pragma unroll
            for (int other = 0; other < WARPS; ++other) sum[list] += s.sums[list][other][thread];
            sum[list] = completed(s.rows, list, to, column_scale[list], sum[list]);
        }
    }
    if (CLUSTER > 1) {
        cluster_wait();  // for what was announced at the start: every thread block runs
        if (thread < TILE)
            for (int list = 0; list < LISTS; ++list)
                send_to_block(&s.parts[rank][list][thread], 0, sum[list], s.arrivals);
        if (rank != 0) return;
        wait_for_arrivals(s.arrivals);
        if (thread < TILE)
            for (int list = 0; list < LISTS; ++list) {
                sum[list] = 0.0f;
                for (int other = 0; other < CLUSTER; ++other) sum[list] += s.parts[other][list][thread];
            }
    }
    if (thread >= TILE) return;
    if (BIAS)
        for (int list = 0; list < LISTS; ++list) sum[list] += added[list];
    if (STORE) {  // out (sum of WIDTHS) float32 = sum
        if (mine) static_cast<float*>(out)[start + to] = sum[0];
    } else if (HIDDEN) {  // out (WIDTH) = activated(gate) * up, rounded where the model rounds
        if (mine) {
            const float gate = widened(rounded(sum[0]));
            const float up = widened(rounded(sum[LISTS - 1]));
            static_cast<unsigned short*>(out)[to] = rounded(activated(gate) * up);
        }
    } else {  // out (COLUMNS) float32 += sum, and the sum of squares of every 32 columns
        const float value = mine ? before + sum[0] : 0.0f;
        if (mine) static_cast<float*>(out)[to] = value;
        const float square = warp_sum(value * value);
        if (lane == 0 && mine) out_squares[to / 32] = square;
    }
}
