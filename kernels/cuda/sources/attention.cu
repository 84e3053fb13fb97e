// Attention of one new token in each row over a static cache. What earlier tokens left does not depend on the kernel
// before this one, so every thread block has its first keys and values on their way before it waits for q, k and v.
// The slots are split over the thread blocks of a cluster, over their warps and over the lanes of a warp; the query
// heads of a thread block share every key and value it reads. Compiled at run time by attention.py, which
// defines the constants in capitals:
//
// HEAD         columns of a head, a power of two    HEADS, KV_HEADS  heads of queries, and of keys and values
// BATCH        rows                                 CAPACITY         slots of the cache
// CHOSEN       heads of keys and values that a row looks at, those of the highest scores; KV_HEADS: all
// WINDOW       tokens that are looked at; 0: all
// SPLITS       partial sums of q, k and v           SCALE            of scores, times log2(e)
// WARPS        warps of a thread block              CLUSTER          thread blocks that share the slots
// UNROLL       slots that a lane has on their way   QUERIES          query heads of a thread block
// PADDED       QUERIES as a power of two            FLOAT16          1: float16 instead of bfloat16
// HEAD_NORM    1: RMSNorm of every query and key    EPSILON          of that
//
// Sums are added in a fixed order: over a lane's slots, over lanes, over warps, over thread blocks of a cluster.

#ifndef EMULATED
#include "device.h"
#endif
#include "new_token.h"

constexpr int LANES = HEAD / 8;                         // lanes that read one slot, 16 bytes each
constexpr int ROWS = 32 / LANES;                        // slots that a warp reads with one load
constexpr int STRIDE = ROWS * WARPS * CLUSTER;          // from one slot of a lane to its next
constexpr int HOLDERS = LANES / UNROLL;                 // lanes that hold the scores of one slot,
constexpr int KEPT = PADDED > HOLDERS ? PADDED / HOLDERS : 1;    // so many each,
constexpr int COPIES = HOLDERS > PADDED ? HOLDERS / PADDED : 1;  // or so many lanes the same one
constexpr int FOURS = QUERIES * HEAD / 4;               // of the output
constexpr int SHARE = (FOURS + CLUSTER - 1) / CLUSTER;  // that a thread block of the cluster finishes
constexpr float LOWEST = -3.402823466e38f;

struct Shared {
    float queries[QUERIES][HEAD];
    alignas(16) unsigned short fresh[2][HEAD];         // key and value of the new token,
    alignas(16) unsigned short other[2][HEAD];         // and of a head that is not looked at
    alignas(16) float weights[WARPS][UNROLL * ROWS + 1][PADDED];  // of slots; in the last row how far sums shrink
    alignas(16) float sums[WARPS][QUERIES][HEAD];      // what each warp found
    float highest[WARPS][QUERIES], totals[WARPS][QUERIES];
    Four parts[CLUSTER][SHARE];                        // what each thread block found, for this one to finish
    float part_highest[CLUSTER][QUERIES], part_totals[CLUSTER][QUERIES];
    Arrivals arrivals;                                 // of the parts
};

struct alignas(8) Pairs {
    unsigned words[2];
};

// Keys or values of a lane's next slots, zeros outside of `lowest` to `end` - 1.
WS_DEVICE void load(Row (&rows)[UNROLL], const unsigned short* at, int slot, int lowest, int end) {
#pragma unroll
    for (int turn = 0; turn < UNROLL; ++turn, slot += STRIDE) {
        rows[turn] = Row{};
        if (slot >= lowest && slot < end) rows[turn] = cached_row(at + static_cast<size_t>(slot) * HEAD);
    }
}

WS_DEVICE void widen(const Row& row, float (&values)[8]) {
#pragma unroll
    for (int word = 0; word < 4; ++word) {
        values[2 * word] = widened(row.words[word] & 0xffffu);
        values[2 * word + 1] = widened(row.words[word] >> 16);
    }
}

#include "softmax.h"

// How much of each part of a softmax counts, and the highest score of all.
template <int COUNT>
WS_DEVICE float shares_of(const float (&highest)[COUNT][QUERIES], int head, float (&shares)[COUNT]) {
    float higher = highest[0][head];
#pragma unroll
    for (int part = 1; part < COUNT; ++part) higher = fmaxf(higher, highest[part][head]);
#pragma unroll
    for (int part = 0; part < COUNT; ++part) shares[part] = exp2f(highest[part][head] - higher);
    return higher;
}

WS_DEVICE void add_share(Four& sum, float share, const Four& part) {
#pragma unroll
    for (int each = 0; each < 4; ++each) sum.values[each] += share * part.values[each];
}

// Add what the warps of a thread block found, for the thread blocks that finish it.
WS_DEVICE void hand_out(Shared& s, int rank, int thread) {
    for (int four = thread; four < FOURS; four += THREADS) {
        const int head = four * 4 / HEAD;
        float shares[WARPS], total = 0.0f;
        const float higher = shares_of(s.highest, head, shares);
        Four sum = {};
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp) {
            total += shares[warp] * s.totals[warp][head];
            add_share(sum, shares[warp], reinterpret_cast<const Four*>(s.sums[warp])[four]);
        }
        send_to_block(&s.parts[rank][four % SHARE], four / SHARE, sum, s.arrivals);
        for (int other = four % (HEAD / 4); other < CLUSTER; other += HEAD / 4) {
            send_to_block(&s.part_highest[rank][head], other, higher, s.arrivals);
            send_to_block(&s.part_totals[rank][head], other, total, s.arrivals);
        }
    }
}

// Add what the thread blocks found, and store this one's share of x.
WS_DEVICE void finish(const Shared& s, const Heads& heads, int rank, int thread, unsigned short* x_out) {
    for (int own = thread; own < SHARE; own += THREADS) {
        const int four = rank * SHARE + own, head = four * 4 / HEAD;
        if (four >= FOURS || head >= heads.count) break;
        float shares[CLUSTER], total = 0.0f;
        shares_of(s.part_highest, head, shares);
        Four sum = {};
#pragma unroll
        for (int part = 0; part < CLUSTER; ++part) {
            total += shares[part] * s.part_totals[part][head];
            add_share(sum, shares[part], s.parts[part][own]);
        }
        const float inverse = 1.0f / total;
        Pairs x;
#pragma unroll
        for (int pair = 0; pair < 2; ++pair)
            x.words[pair] = rounded(sum.values[2 * pair] * inverse) |
                            static_cast<unsigned>(rounded(sum.values[2 * pair + 1] * inverse)) << 16;
        *reinterpret_cast<Pairs*>(x_out + (heads.row * HEADS + heads.first) * HEAD + four * 4) = x;
    }
}

// Put a new key and value into the cache. Lanes of a slot's columns stand first in a warp.
WS_DEVICE void append(const unsigned short (&fresh)[2][HEAD], const Heads& heads, int thread, unsigned short* keys,
                    unsigned short* values) {
    if (!heads.appends || thread >= LANES) return;
    *reinterpret_cast<Row*>(keys) = reinterpret_cast<const Row*>(fresh[0])[thread];
    *reinterpret_cast<Row*>(values) = reinterpret_cast<const Row*>(fresh[1])[thread];
}

#if CHOSEN < KV_HEADS
// Of heads that are not looked at leave nothing, but put their new keys and values into the cache. Apart, so that the
// registers it takes do not change the order in which the kernel asks for keys and values.
WS_DEVICE_APART void leave_out(Shared& s, const Heads& other, const float* sums, const unsigned short* bias,
                            const float* cosines, const float* sines, const unsigned short* query_gain,
                            const unsigned short* key_gain, int position, int thread, unsigned short* keys,
                            unsigned short* values, unsigned short* x_out) {
    Heads without_queries = other;
    without_queries.count = 0;
    Projections projections;
    projections.prepare(without_queries, bias, cosines, sines, query_gain, key_gain, position, thread);
    block_barrier();  // sums were handed out
    projections.finish(without_queries, sums, s.queries, s.other, &s.sums[0][0][0], thread);
    block_barrier();
    for (int four = thread; four < other.count * HEAD / 4; four += THREADS)
        *reinterpret_cast<Pairs*>(x_out + (other.row * HEADS + other.first) * HEAD + four * 4) = Pairs{};
    append(s.other, other, thread, keys, values);
}
#endif

WS_KERNEL(THREADS, 1) attention_kernel(const float* sums, const unsigned short* bias, unsigned short* keys,
                                    unsigned short* values, const float* cosines, const float* sines,
                                    const int* lengths, const int* firsts, unsigned short* x_out,
                                    const unsigned short* query_gain, const unsigned short* key_gain,
                                    const float* scores) {
    WS_SHARED(Shared, s);
    const int thread = thread_index(), warp = thread / 32, lane = thread % 32;
    const int rank = block_index() % CLUSTER, cluster = block_index() / CLUSTER;
    const int turn = cluster % TURNS, place = cluster / TURNS % CHOSEN, row = cluster / TURNS / CHOSEN;
    // Length, cache and scores were written by kernels before the one that this waits for, which had waited for them.
    const float* of_row = scores + row * KV_HEADS;
    const Heads heads(row, ranked(of_row, place, lane), turn);
    const int length = *lengths, first = firsts[row];
    const auto slots_of = [&](int kv_head) {
        return (static_cast<size_t>(row) * KV_HEADS + kv_head) * CAPACITY * HEAD + lane % LANES * 8;
    };
    const size_t own = slots_of(heads.kv_head), new_slot = static_cast<size_t>(length) * HEAD;
    Projections projections;
    if (thread == 0) {
        const int left = FOURS - rank * SHARE, fours = left < 0 ? 0 : left < SHARE ? left : SHARE;
        expect(s.arrivals, CLUSTER * (fours * sizeof(Four) + QUERIES * 2 * sizeof(float)));
    }
    cluster_announce();  // a neighbour's shared memory may be written once it has started

    const int start = WINDOW && length + 1 > WINDOW ? length + 1 - WINDOW : 0;
    const int lowest = first > start ? first : start;
    int begin = start + (warp * CLUSTER + rank) * ROWS + lane / LANES;
    // Without a window the first loads wait for nothing, the length least of all.
    Row key[UNROLL], value[UNROLL];
    load(key, keys + own, begin, 0, WINDOW ? length : CAPACITY);
    load(value, values + own, begin, 0, WINDOW ? length : CAPACITY);
    projections.prepare(heads, bias, cosines, sines, query_gain, key_gain, length - first, thread);
#pragma unroll
    for (int turn = 0; turn < UNROLL; ++turn)  // what is no token's may be NaN, which no weight of 0 hides
        if (begin + turn * STRIDE < lowest || begin + turn * STRIDE >= length) value[turn] = Row{};
    cluster_wait();  // for what was announced: every thread block runs
    wait_for_producer();
    start_consumer();
    projections.finish(heads, sums, s.queries, s.fresh, &s.sums[0][0][0], thread);  // sums come later
    block_barrier();

    Softmax softmax;
    for (int step = start; step <= length; step += UNROLL * STRIDE, begin += UNROLL * STRIDE) {
#pragma unroll
        for (int turn = 0; turn < UNROLL; ++turn)
            if (begin + turn * STRIDE == length) {
                key[turn] = reinterpret_cast<const Row*>(s.fresh[0])[lane % LANES];
                value[turn] = reinterpret_cast<const Row*>(s.fresh[1])[lane % LANES];
            }
        softmax.weigh(key, s, begin, lowest, length, warp, lane);
        load(key, keys + own, begin + UNROLL * STRIDE, lowest, length);
        softmax.add(value, s, step > start, warp, lane);
        load(value, values + own, begin + UNROLL * STRIDE, lowest, length);
        warp_barrier();  // the next step's weights take this one's place
    }
    softmax.leave(s, warp, lane);
    block_barrier();
    hand_out(s, rank, thread);
#if CHOSEN < KV_HEADS
    // While the other thread blocks' sums arrive.
#pragma unroll 1
    for (int each = CLUSTER - 1 - rank; each < OTHERS; each += CLUSTER) {
        const int lower = place + (each + 1) * CHOSEN;
        if (lower >= KV_HEADS) break;
        const Heads other(row, ranked(of_row, lower, lane), turn);
        const size_t to = slots_of(other.kv_head) + new_slot;
        leave_out(s, other, sums, bias, cosines, sines, query_gain, key_gain, length - first, thread, keys + to,
                  values + to, x_out);
    }
#endif
    wait_for_arrivals(s.arrivals);
    finish(s, heads, rank, thread, x_out);
    if (rank == 0)  // behind the barriers, which wait for stores
        append(s.fresh, heads, thread, keys + own + new_slot, values + own + new_slot);
}
