// Rows of a weight in half precision, for product.cu, whose constants these are.
#pragma once

constexpr int LANES = TILE / 8;    // lanes that read one row, 16 bytes each
constexpr int AT_ONCE = 32 / LANES;  // rows that a warp reads with one load

struct Weight {
    const void* values;  // (IN, COLUMNS) of 16 bits
    const void* scales;
    const unsigned char* zeros;
    const float* column_scales;
};
struct Rows {
    unsigned list[LISTS][STEPS * THREADS];  // channel above, x in its own 16 bits below
    int kept[LISTS][WARPS];
};

// What x is multiplied with before its row is: nothing here.
struct Factors {
    WS_DEVICE void read(const Weight&, int, int, int, int, int, int) {}
};

// Bring a warp's first rows into the second cache.
WS_DEVICE void ask_ahead(const Weight& weight, int start, int width, int tile, int begin, int end, int warp, int lane) {
    const int column = tile * TILE + lane % LANES * 8;
    const unsigned short* columns = static_cast<const unsigned short*>(weight.values) + start + column;
#pragma unroll
    for (int turn = 0; turn < AHEAD; ++turn) {
        // The order in which the channels of a thread block are listed, if it keeps all.
        const int entry = (turn * WARPS + warp) * AT_ONCE + lane / LANES, own = entry % (STEPS * 32);
        const int channel = begin + own / 32 * THREADS + entry / (STEPS * 32) * 32 + own % 32;
        if (channel < end && column < width) ask_for(columns + static_cast<size_t>(channel) * COLUMNS);
    }
}

// The sums of a warp's share of one list's rows, (TILE).
WS_DEVICE void multiply_list(const Rows& rows, int list, int kept, const Weight& weight, int start, int width, int tile,
                             int warp, int lane, float (&found)[TILE]) {
    const int column = tile * TILE + lane % LANES * 8;
    const unsigned short* columns = static_cast<const unsigned short*>(weight.values) + start + column;
    const bool inside = column < width;
    float sums[8] = {};
    for (int begin = warp * AT_ONCE + lane / LANES; begin < kept; begin += UNROLL * WARPS * AT_ONCE) {
        Row row[UNROLL];
        float x[UNROLL];
#pragma unroll
        for (int turn = 0; turn < UNROLL; ++turn) {
            const int entry = begin + turn * WARPS * AT_ONCE;
            row[turn] = Row{};
            x[turn] = 0.0f;
            if (entry < kept && inside) {
                const unsigned listed = rows.list[list][entry];
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
#pragma unroll
    for (int each = 0; each < 8; ++each) {
        for (int apart = LANES; apart < 32; apart *= 2) sums[each] += warp_exchange(sums[each], apart);
        if (lane < LANES) found[lane * 8 + each] = sums[each];
    }
}

// Lists that the warps of a thread block share: rows are long, and a warp that had more of them than others would be
// waited for.
struct Lists {
    int total[LISTS];

    WS_DEVICE void begin(Rows& rows, const unsigned (&kept)[LISTS][STEPS], const Weight&, int, int, int, int, int warp,
                         int lane) {
#pragma unroll
        for (int list = 0; list < LISTS; ++list) {
            int count = 0;
#pragma unroll
            for (int step = 0; step < STEPS; ++step) count += bits_of(kept[list][step]);
            if (lane == 0) rows.kept[list][warp] = count;
        }
    }

    WS_DEVICE void fill(Rows& rows, const unsigned (&kept)[LISTS][STEPS], const Factors (&)[LISTS],
                        const float (&x)[STEPS], int begin, int warp, int lane) {
        block_barrier();
#pragma unroll
        for (int list = 0; list < LISTS; ++list) {
            int place = total[list] = 0;
#pragma unroll
            for (int other = 0; other < WARPS; ++other) {
                place += other < warp ? rows.kept[list][other] : 0;
                total[list] += rows.kept[list][other];
            }
#pragma unroll
            for (int step = 0; step < STEPS; ++step) {
                const unsigned before = kept[list][step] & ((1u << lane) - 1u);
                if (kept[list][step] >> lane & 1u) {
                    const unsigned channel = begin + step * THREADS + warp * 32 + lane;
                    rows.list[list][place + bits_of(before)] = channel << 16 | rounded(x[step]);
                }
                place += bits_of(kept[list][step]);
            }
        }
        block_barrier();
    }

    // The sums of a warp's share of every list's rows, (LISTS, TILE).
    WS_DEVICE void multiply(const Rows& rows, const Weight& weight, int start, int width, int tile,
                            const Factors (&)[LISTS], int warp, int lane, float (&found)[LISTS][WARPS][TILE]) {
#pragma unroll
        for (int list = 0; list < LISTS; ++list)
            multiply_list(rows, list, total[list], weight, start + list * WIDTH, width, tile, warp, lane, found[list][warp]);
    }
};

WS_DEVICE float of_column(const Weight&, int) { return 0.0f; }
WS_DEVICE float completed(const Rows&, int, int, float, float sum) { return sum; }
