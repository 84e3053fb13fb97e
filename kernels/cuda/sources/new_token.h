// The new token's projections in attention: which row and which columns of q, k and v a cluster has, and how they are added
// up, rounded, normalised in some families, and turned. Constants in capitals are attention.cu's.
#pragma once

constexpr int THREADS = WARPS * 32;
constexpr int GROUP = HEADS / KV_HEADS;
constexpr int TURNS = (GROUP + QUERIES - 1) / QUERIES;  // clusters that share a key-value head
constexpr int WIDTH = (HEADS + 2 * KV_HEADS) * HEAD;    // columns of q, k and v
constexpr int OTHERS = (KV_HEADS - 1) / CHOSEN;         // most key-value heads not looked at for each that is
constexpr int HALF = HEAD / 2;                          // columns that are turned into each other
constexpr int PAIRS = ((QUERIES + 2) * HALF + THREADS - 1) / THREADS;  // that a thread turns
constexpr int SPAN = HALF < 32 ? HALF : 32;             // lanes of a warp that have columns of the same head
constexpr int SQUARES = HALF / SPAN;                    // sums of squares that are left of a head

// The key-value head whose score is the `place`-th highest of a row, of equal ones the first; a lane for each head.
WS_DEVICE int ranked(const float* scores, int place, int lane) {
    if (CHOSEN == KV_HEADS) return place;
    const float own = lane < KV_HEADS ? scores[lane] : 0.0f;
    int rank = 0;
    for (int other = 0; other < KV_HEADS; ++other)
        rank += scores[other] > own || (scores[other] == own && other < lane);
    const unsigned found = warp_ballot(lane < KV_HEADS && rank == place);
    return found ? bits_of((found & -found) - 1) : 0;  // among scores that are no numbers there may be none
}

// Query heads of a row that a cluster computes, which share a key-value head, and their columns of q, k and v.
struct Heads {
    int row, kv_head, first, count;
    bool appends;  // the new key and value to the cache

    WS_DEVICE Heads(int row, int kv_head, int turn) : row(row), kv_head(kv_head) {
        first = kv_head * GROUP + turn * QUERIES;
        count = turn + 1 < TURNS ? QUERIES : GROUP - turn * QUERIES;
        appends = turn == 0;
    }
    WS_DEVICE bool real(int head) const { return head < count || (head >= QUERIES && head < QUERIES + 2); }
    WS_DEVICE int column(int head) const {
        return (head < QUERIES ? first + head : HEADS + (head - QUERIES) * KV_HEADS + kv_head) * HEAD;
    }
};

// Projections of the new token and their rotary angles: two columns that are turned into each other at a time.
struct Projections {
    float bias[PAIRS][2], cosine[PAIRS][2], sine[PAIRS][2], gain[PAIRS][2];

    // What does not depend on the kernel before.
    WS_DEVICE void prepare(const Heads& heads, const unsigned short* biases, const float* cosines, const float* sines,
                        const unsigned short* query_gain, const unsigned short* key_gain, int position, int thread) {
#pragma unroll
        for (int turn = 0; turn < PAIRS; ++turn) {
            const int pair = turn * THREADS + thread, head = pair / HALF;
#pragma unroll
            for (int side = 0; side < 2; ++side) {
                const int d = pair % HALF + side * HALF;
                bias[turn][side] = biases && heads.real(head) ? widened(biases[heads.column(head) + d]) : 0.0f;
                cosine[turn][side] = head <= QUERIES ? cosines[position * HEAD + d] : 1.0f;
                sine[turn][side] = head <= QUERIES ? sines[position * HEAD + d] : 0.0f;
                if (HEAD_NORM)
                    gain[turn][side] = head <= QUERIES ? widened((head < QUERIES ? query_gain : key_gain)[d]) : 1.0f;
            }
        }
    }

    // Add, round, normalise and turn what the kernel before has left. There is room for squares of every head.
    WS_DEVICE void finish(const Heads& heads, const float* sums, float (&queries)[QUERIES][HEAD],
                       unsigned short (&fresh)[2][HEAD], float* squares, int thread) const {
        float found[PAIRS][2];
#pragma unroll
        for (int turn = 0; turn < PAIRS; ++turn) {
            const int pair = turn * THREADS + thread, head = pair / HALF;
#pragma unroll
            for (int side = 0; side < 2; ++side) {
                const float* at = sums + heads.row * WIDTH + heads.column(head) + pair % HALF + side * HALF;
                found[turn][side] = 0.0f;
                if (heads.real(head))
                    for (int split = 0; split < SPLITS; ++split)
                        found[turn][side] += from_producer(at + split * BATCH * WIDTH);
            }
        }
        if (HEAD_NORM) normalise(found, squares, thread);
#pragma unroll
        for (int turn = 0; turn < PAIRS; ++turn) {
            const int pair = turn * THREADS + thread, head = pair / HALF, d = pair % HALF;
            const float lower = HEAD_NORM ? found[turn][0] : widened(rounded(found[turn][0] + bias[turn][0]));
            const float upper = HEAD_NORM ? found[turn][1] : widened(rounded(found[turn][1] + bias[turn][1]));
            const unsigned short first = rounded(lower * cosine[turn][0] - upper * sine[turn][0]);
            const unsigned short second = rounded(upper * cosine[turn][1] + lower * sine[turn][1]);
            if (head < QUERIES) {
                queries[head][d] = widened(first);
                queries[head][d + HALF] = widened(second);
            } else if (head == QUERIES) {
                fresh[0][d] = first;
                fresh[0][d + HALF] = second;
            } else if (head == QUERIES + 1) {
                fresh[1][d] = rounded(lower);
                fresh[1][d + HALF] = rounded(upper);
            }
        }
    }

    // Round with the bias, then RMSNorm of each query and key. A head may have columns in several warps, which meet
    // through shared memory.
    WS_DEVICE void normalise(float (&found)[PAIRS][2], float* squares, int thread) const {
#pragma unroll
        for (int turn = 0; turn < PAIRS; ++turn) {
            const int pair = turn * THREADS + thread;
#pragma unroll
            for (int side = 0; side < 2; ++side) found[turn][side] = widened(rounded(found[turn][side] + bias[turn][side]));
            float square = found[turn][0] * found[turn][0] + found[turn][1] * found[turn][1];
            for (int apart = SPAN / 2; apart > 0; apart /= 2) square += warp_exchange(square, apart);
            if (pair % SPAN == 0 && pair < (QUERIES + 1) * HALF) squares[pair / SPAN] = square;
        }
        block_barrier();
#pragma unroll
        for (int turn = 0; turn < PAIRS; ++turn) {
            const int head = (turn * THREADS + thread) / HALF;
            if (head > QUERIES) continue;  // values stay as they are
            float total = 0.0f;
#pragma unroll
            for (int part = 0; part < SQUARES; ++part) total += squares[head * SQUARES + part];
            const float inverse = 1.0f / sqrtf(total / HEAD + EPSILON);
#pragma unroll
            for (int side = 0; side < 2; ++side)
                found[turn][side] = widened(rounded(widened(rounded(found[turn][side] * inverse)) * gain[turn][side]));
        }
    }
};
