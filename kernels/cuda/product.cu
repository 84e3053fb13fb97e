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
// STORE, HIDDEN, RESIDUAL  one of them is 1: what becomes of the sums (see the end of the kernel)
// WIDTHS       columns of each projection, as an initializer list; HIDDEN has gate and up of WIDTH columns each
// FLOAT16      1: float16 instead of bfloat16
//
// The sums are added in a fixed order: over a lane's rows, over lanes, over warps, over thread blocks of a cluster.

#ifndef EMULATED
#include "device.h"
#endif
#include "norm.h"

constexpr int LISTS = HIDDEN ? 2 : 1;
constexpr int THREADS = WARPS * 32;
constexpr int LANES = TILE / 8;       // lanes that read one row, 16 bytes each
constexpr int ROWS = 32 / LANES;      // rows that a warp reads with one load
constexpr int STEPS = (SHARE + THREADS - 1) / THREADS;
constexpr int PROJECTION_WIDTHS[] = WIDTHS;
constexpr int PROJECTIONS = HIDDEN ? 1 : sizeof(PROJECTION_WIDTHS) / sizeof(int);

struct Shared {
    unsigned list[LISTS][STEPS * THREADS];  // channel above, x in its own 16 bits below
    int kept[LISTS][WARPS];
    float sums[LISTS][WARPS][TILE];
    float parts[CLUSTER][LISTS][TILE];
};

// Add the rows of one list to a lane's sums of eight columns.
WS_DEVICE void multiply(const unsigned* list, int kept, const unsigned short* columns, bool inside, int first,
                     float (&sums)[8]) {
    for (int begin = first; begin < kept; begin += UNROLL * WARPS * ROWS) {
        Row row[UNROLL];
        float x[UNROLL];
#pragma unroll
        for (int turn = 0; turn < UNROLL; ++turn) {
            const int entry = begin + turn * WARPS * ROWS;
            row[turn] = Row{};
            x[turn] = 0.0f;
            if (entry < kept && inside) {
                const unsigned listed = list[entry];
                row[turn] = streamed_row(columns + static_cast<size_t>(listed >> 16) * COLUMNS);
                x[turn] = widened(listed & 0xffffu);
            }
        }
#pragma unroll
        for (int turn = 0; turn < UNROLL; ++turn) {
#pragma unroll
            for (int word = 0; word < 4; ++word) {
                sums[2 * word] += x[turn] * widened(row[turn].words[word] & 0xffffu);
                sums[2 * word + 1] += x[turn] * widened(row[turn].words[word] >> 16);
            }
        }
    }
}

WS_KERNEL(THREADS, RESIDENT) product_kernel(const unsigned short* weight, const void* source, const float* squares,
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
    if (CLUSTER > 1) cluster_announce();  // a neighbour's shared memory may be written once it has started

    // Parameters are read before the wait for the kernel that writes the activation.
    const int begin = rank * SHARE, end = begin + SHARE < IN ? begin + SHARE : IN;
    float bound[LISTS][STEPS], scale[STEPS], x[STEPS];
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
        const int channel = begin + step * THREADS + thread;
        const bool real = channel < end;
#pragma unroll
        for (int list = 0; list < LISTS; ++list)
            bound[list][step] = real ? bounds[(projection + list) * IN + channel] : 0.0f;
        scale[step] = NORM && real ? widened(gain[channel]) : 0.0f;
    }
    wait_for_producer();
    start_consumer();
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
        const int channel = begin + step * THREADS + thread;
        x[step] = 0.0f;
        if (channel < end) x[step] = from_source(source, channel);
    }
    if (NORM) {
        const float inverse = inverse_norm(squares, lane);
#pragma unroll
        for (int step = 0; step < STEPS; ++step) x[step] = normalised(x[step], inverse, scale[step]);
    }

    unsigned kept[LISTS][STEPS];
#pragma unroll
    for (int list = 0; list < LISTS; ++list) {
        const float cut = TOP_K ? from_producer(smallest + projection + list) : 0.0f;
        int count = 0;
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            const bool real = begin + step * THREADS + thread < end;
            // NaN compares false, so a broken activation is kept and shows in the output.
            const bool dropped =
                TOP_K ? fabsf(x[step]) * bound[list][step] < cut : fabsf(x[step]) < bound[list][step];
            kept[list][step] = warp_ballot(real && !dropped);
            count += bits_of(kept[list][step]);
        }
        if (lane == 0) s.kept[list][warp] = count;
    }
    block_barrier();
    int total[LISTS];
#pragma unroll
    for (int list = 0; list < LISTS; ++list) {
        int place = 0;
        total[list] = 0;
#pragma unroll
        for (int other = 0; other < WARPS; ++other) {
            place += other < warp ? s.kept[list][other] : 0;
            total[list] += s.kept[list][other];
        }
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            const unsigned before = kept[list][step] & ((1u << lane) - 1u);
            if (kept[list][step] >> lane & 1u) {
                const unsigned channel = begin + step * THREADS + thread;
                s.list[list][place + bits_of(before)] = channel << 16 | rounded(x[step]);
            }
            place += bits_of(kept[list][step]);
        }
    }
    block_barrier();

    const int width = HIDDEN ? WIDTH : PROJECTION_WIDTHS[projection];
    const int column = tile * TILE + lane % LANES * 8;
    const int first = warp * ROWS + lane / LANES;
#pragma unroll
    for (int list = 0; list < LISTS; ++list) {
        float sums[8] = {};
        multiply(s.list[list], total[list], weight + start + list * WIDTH + column, column < width, first, sums);
#pragma unroll
        for (int each = 0; each < 8; ++each) {
            for (int apart = LANES; apart < 32; apart *= 2) sums[each] += warp_exchange(sums[each], apart);
            if (lane < LANES) s.sums[list][warp][lane * 8 + each] = sums[each];
        }
    }
    block_barrier();

    float sum[LISTS] = {};
    if (thread < TILE) {
#pragma unroll
        for (int list = 0; list < LISTS; ++list)
#pragma unroll
            for (int other = 0; other < WARPS; ++other) sum[list] += s.sums[list][other][thread];
    }
    if (CLUSTER > 1) {
        cluster_wait();  // for what was announced at the start: every thread block runs
        if (thread < TILE)
            for (int list = 0; list < LISTS; ++list) store_in_block(&s.parts[rank][list][thread], 0, sum[list]);
        cluster_arrive();
        if (rank != 0) return;
        cluster_wait();
        if (thread < TILE)
            for (int list = 0; list < LISTS; ++list) {
                sum[list] = 0.0f;
                for (int other = 0; other < CLUSTER; ++other) sum[list] += s.parts[other][list][thread];
            }
    }
    if (thread >= TILE) return;
    const int to = tile * TILE + thread;
    if (STORE) {  // out (sum of WIDTHS) float32 = sum + bias
        if (to < width)
            static_cast<float*>(out)[start + to] = sum[0] + (bias ? widened(bias[start + to]) : 0.0f);
    } else if (HIDDEN) {  // out (WIDTH) = silu(gate) * up, rounded where the model rounds
        if (to < width) {
            const float gate = widened(rounded(sum[0]));
            const float up = widened(rounded(sum[LISTS - 1]));
            const float activated = widened(rounded(gate / (1.0f + expf(-gate))));
            static_cast<unsigned short*>(out)[to] = rounded(activated * up);
        }
    } else {  // out (COLUMNS) float32 += sum, and the sum of squares of every 32 columns
        float* residual = static_cast<float*>(out);
        const float value = to < width ? from_producer(residual + to) + sum[0] : 0.0f;
        if (to < width) residual[to] = value;
        const float square = warp_sum(value * value);
        if (lane == 0 && to < width) out_squares[to / 32] = square;
    }
}
