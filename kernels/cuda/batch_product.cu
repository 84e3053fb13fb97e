// The product of a few tokens together with a weight (in, out), by one list of kept channels: their rows are read
// once for all tokens, the others never. Every thread block lists the channels it keeps itself, from the magnitudes
// of all tokens together. Compiled at run time by batch_product.py, which defines the constants in capitals: those of
// product.cu for a tile, and
//
// BATCH        tokens, at most ROWS   ROWS      2, 4 or 8, values of one channel in shared memory
// MAXIMUM      1: magnitudes of HIDDEN's output are the largest of the tokens' absolute values, else their sum
//
// The sums are added in a fixed order, as in product.cu.

#ifndef EMULATED
#include "device.h"
#endif

constexpr int LISTS = HIDDEN ? 2 : 1;
constexpr int THREADS = WARPS * 32;
constexpr int STEPS = (SHARE + THREADS - 1) / THREADS;
constexpr int LANES = TILE / 8;      // lanes that read one row, 16 bytes each
constexpr int AT_ONCE = 32 / LANES;  // rows that a warp reads with one load
constexpr int OWNERS = HIDDEN ? 1 : CLUSTER;  // thread blocks that finish tokens in turn; magnitudes need all of them
constexpr int OWN = (BATCH + OWNERS - 1) / OWNERS;
constexpr int PROJECTION_WIDTHS[] = WIDTHS;
constexpr int PROJECTIONS = HIDDEN ? 1 : sizeof(PROJECTION_WIDTHS) / sizeof(int);

struct alignas(2 * ROWS) Values {
    unsigned short of[ROWS];
};
struct Shared {
    Values x[SHARE];                              // of every channel of the share
    unsigned short list[LISTS][STEPS * THREADS];  // kept channels, counted from the first of the share
    int kept[LISTS][WARPS];
    float sums[2][WARPS][TILE];  // of two tokens at a time
    float parts[CLUSTER][LISTS][OWN][TILE];  // of the tokens that this thread block finishes
    Arrivals arrivals;  // of the parts
};

// The sums of one list's rows for every token: total[token] of the column of a thread.
WS_DEVICE void multiply(Shared& s, int list, int kept, const unsigned short* columns, bool inside, int begin_of_share,
                        int thread, float (&total)[BATCH]) {
    const int warp = thread / 32, lane = thread % 32;
    float sums[BATCH][8] = {};
    for (int begin = warp * AT_ONCE + lane / LANES; begin < kept; begin += UNROLL * WARPS * AT_ONCE) {
        Row row[UNROLL];
        int local[UNROLL];
#pragma unroll
        for (int turn = 0; turn < UNROLL; ++turn) {
            const int entry = begin + turn * WARPS * AT_ONCE;
            row[turn] = Row{};
            local[turn] = -1;
            if (entry < kept && inside) {
                local[turn] = s.list[list][entry];
                row[turn] = streamed_row(columns + static_cast<size_t>(begin_of_share + local[turn]) * COLUMNS);
            }
        }
#pragma unroll
        for (int turn = 0; turn < UNROLL; ++turn) {
            if (local[turn] < 0) continue;
            const Values values = s.x[local[turn]];
            float weights[8];
#pragma unroll
            for (int word = 0; word < 4; ++word) {
                weights[2 * word] = widened(row[turn].words[word] & 0xffffu);
                weights[2 * word + 1] = widened(row[turn].words[word] >> 16);
            }
#pragma unroll
            for (int token = 0; token < BATCH; ++token) {
                const float x = widened(values.of[token]);
#pragma unroll
                for (int each = 0; each < 8; ++each) sums[token][each] += x * weights[each];
            }
        }
    }
#pragma unroll
    for (int first = 0; first < BATCH; first += 2) {
#pragma unroll
        for (int token = first; token < first + 2 && token < BATCH; ++token) {
#pragma unroll
            for (int each = 0; each < 8; ++each) {
                float sum = sums[token][each];
#pragma unroll
                for (int apart = LANES; apart < 32; apart *= 2) sum += warp_exchange(sum, apart);
                if (lane < LANES) s.sums[token - first][warp][lane * 8 + each] = sum;
            }
        }
        block_barrier();
#pragma unroll
        for (int token = first; token < first + 2 && token < BATCH; ++token) {
            total[token] = 0.0f;
            if (thread < TILE)
                for (int other = 0; other < WARPS; ++other) total[token] += s.sums[token - first][other][thread];
        }
        block_barrier();
    }
}

WS_KERNEL(THREADS, RESIDENT) batch_product_kernel(const unsigned short* weight, const unsigned short* source,
                                               const float* magnitudes, const float* score_weights,
                                               const float* smallest, const unsigned short* bias, void* out,
                                               float* out_squares, float* out_magnitudes) {
    WS_SHARED(Shared, s);
    const int thread = thread_index(), warp = thread / 32, lane = thread % 32;
    const int rank = block_index() % CLUSTER, own = rank < OWNERS ? (BATCH - rank + OWNERS - 1) / OWNERS : 0;
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
        if (own > 0 && thread == 0) expect(s.arrivals, CLUSTER * LISTS * own * TILE * sizeof(float));
        cluster_announce();  // a neighbour's shared memory may be written once it has started
    }

    // Parameters are read before the wait for the kernel that writes the activation.
    const int begin = rank * SHARE, end = begin + SHARE < IN ? begin + SHARE : IN;
    const int width = HIDDEN ? WIDTH : PROJECTION_WIDTHS[projection];
    float of_score[LISTS][STEPS];
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
        const int channel = begin + step * THREADS + thread;
#pragma unroll
        for (int list = 0; list < LISTS; ++list)
            of_score[list][step] = channel < end ? score_weights[(projection + list) * IN + channel] : 0.0f;
    }
    wait_for_producer();
    start_consumer();

    // Eight channels of one token a load; tokens beside each other lie so in shared memory, too.
    for (int item = thread; item < ROWS * (SHARE / 8); item += THREADS) {
        const int token = item % ROWS, channel = item / ROWS * 8;
        Row values{};
        if (token < BATCH && begin + channel < end)
            values = cached_row(source + static_cast<size_t>(token) * IN + begin + channel);
#pragma unroll
        for (int each = 0; each < 8; ++each)
            s.x[channel + each].of[token] = values.words[each / 2] >> (each % 2 * 16) & 0xffffu;
    }
    unsigned kept[LISTS][STEPS];
#pragma unroll
    for (int list = 0; list < LISTS; ++list) {
        const float cut = from_producer(smallest + projection + list);
        int count = 0;
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            const int channel = begin + step * THREADS + thread;
            const float score = channel < end ? from_producer(magnitudes + channel) * of_score[list][step] : 0.0f;
            // NaN compares false, so a broken activation is kept and shows in the output.
            kept[list][step] = warp_ballot(channel < end && !(score < cut));
            count += bits_of(kept[list][step]);
        }
        if (lane == 0) s.kept[list][warp] = count;
    }
    block_barrier();
    int listed[LISTS];
#pragma unroll
    for (int list = 0; list < LISTS; ++list) {
        int place = 0;
        listed[list] = 0;
#pragma unroll
        for (int other = 0; other < WARPS; ++other) {
            place += other < warp ? s.kept[list][other] : 0;
            listed[list] += s.kept[list][other];
        }
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            const unsigned before = kept[list][step] & ((1u << lane) - 1u);
            if (kept[list][step] >> lane & 1u)
                s.list[list][place + bits_of(before)] = static_cast<unsigned short>(step * THREADS + thread);
            place += bits_of(kept[list][step]);
        }
    }
    block_barrier();

    const int first_column = tile * TILE + lane % LANES * 8, to = tile * TILE + thread;
    const bool mine = thread < TILE && to < width;
    float sum[LISTS][BATCH];
#pragma unroll
    for (int list = 0; list < LISTS; ++list)
        multiply(s, list, listed[list], weight + start + list * WIDTH + first_column, first_column < width, begin,
                 thread, sum[list]);

    if (CLUSTER > 1) {
        cluster_wait();  // for what was announced at the start: every thread block runs
        if (thread < TILE) {
#pragma unroll
            for (int list = 0; list < LISTS; ++list)
#pragma unroll
                for (int token = 0; token < BATCH; ++token)
                    send_to_block(&s.parts[rank][list][token / OWNERS][thread], token % OWNERS, sum[list][token],
                                  s.arrivals);
        }
        if (own == 0) return;
        wait_for_arrivals(s.arrivals);
        if (thread < TILE) {
#pragma unroll
            for (int list = 0; list < LISTS; ++list)
#pragma unroll
                for (int token = 0; token < BATCH; ++token) {
                    if (token % OWNERS != rank) continue;
                    sum[list][token] = 0.0f;
                    for (int other = 0; other < CLUSTER; ++other)
                        sum[list][token] += s.parts[other][list][token / OWNERS][thread];
                }
        }
    }
    if (thread >= TILE) return;
    float together = 0.0f;
#pragma unroll
    for (int token = 0; token < BATCH; ++token) {
        if (token % OWNERS != rank) continue;
        if (STORE) {  // out (BATCH, COLUMNS) float32 = sum + bias
            const float before = mine && bias ? widened(bias[start + to]) : 0.0f;
            if (mine) static_cast<float*>(out)[static_cast<size_t>(token) * COLUMNS + start + to] = sum[0][token] + before;
        } else if (HIDDEN) {  // out (BATCH, WIDTH) = silu(gate) * up, rounded where the model rounds
            const float gate = widened(rounded(sum[0][token]));
            const float up = widened(rounded(sum[LISTS - 1][token]));
            const unsigned short hidden = rounded(widened(rounded(gate / (1.0f + expf(-gate)))) * up);
            if (mine) static_cast<unsigned short*>(out)[static_cast<size_t>(token) * WIDTH + to] = hidden;
            const float magnitude = fabsf(widened(hidden));
            together = MAXIMUM ? (magnitude > together ? magnitude : together) : together + magnitude;
        } else {  // out (BATCH, COLUMNS) float32 += sum, and the sum of squares of every 32 columns
            float* residual = static_cast<float*>(out) + static_cast<size_t>(token) * COLUMNS + to;
            const float value = mine ? from_producer(residual) + sum[0][token] : 0.0f;
            if (mine) *residual = value;
            const float square = warp_sum(value * value);
            if (lane == 0 && mine) out_squares[token * ((COLUMNS + 31) / 32) + to / 32] = square;
        }
    }
    if (HIDDEN && mine) out_magnitudes[to] = together;
}
