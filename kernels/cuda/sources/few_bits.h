// Rows of a weight in 8 or 4 bits, for product.cu, whose constants these are, and besides:
//
// GROUP        of 4 bits: columns that share a scale; divides TILE or is a multiple of it
// ZEROS        of 4 bits: 1: groups have zero points
//
// Values are multiplied as they are stored, in integers on tensor cores. An activation times its row's scale becomes a
// fixed-point number of 32 bits under the largest of its warp's list, four signed digits of 8 bits; sums of digits times values
// are exact. One instruction multiplies 16 words of four neighbouring columns with 8 channels: the four columns of a word
// are the inner dimension beside the channels, and the other matrix has a channel's digits on the diagonal. So the
// bytes of a row go into it as they come from memory, with two digits a column as its eight outputs.
#pragma once

static_assert(BITS == 8 || BITS == 4);
constexpr int PIECE = BITS == 8 ? (TILE >= 128 ? 16 : 8) : GROUP % 128 == 0 && TILE >= 128 ? 8 : 4;  // bytes of a lane
constexpr int LANE_COLUMNS = PIECE * 8 / BITS;
constexpr int PIECE_COLUMNS = 8 * LANE_COLUMNS;  // of eight lanes, which read beside each other and share a scale
constexpr int PIECES = TILE / PIECE_COLUMNS;
constexpr int WORDS = PIECE / 4;
constexpr int QUADS = BITS == 8 ? WORDS : 2 * WORDS;  // a lane's sets of four columns in a piece
constexpr int SCALES = BITS == 8 || GROUP >= TILE ? 1 : TILE / GROUP;
constexpr int AT_ONCE = 4;  // rows that a warp reads with one load
constexpr size_t ROW_BYTES = static_cast<size_t>(COLUMNS) * BITS / 8;
static_assert(UNROLL % 2 == 0 && TILE % PIECE_COLUMNS == 0 && QUADS % 2 == 0);

struct Weight {
    const void* values;              // (IN, COLUMNS)
    const void* scales;              // 8 bits: (projections, IN) float32; 4 bits: (COLUMNS / GROUP, IN) float16
    const unsigned char* zeros;      // (COLUMNS / GROUP, IN)
    const float* column_scales;      // 8 bits: (COLUMNS)
};
struct Rows {
    unsigned digits[LISTS][SCALES][STEPS * THREADS];  // a warp's own STEPS * 32 behind those of another
    unsigned short channel[LISTS][STEPS * THREADS];
    float offset[LISTS][SCALES][WARPS];      // sum of x · scale · (zero - 8)
};

// A list's scales of the channels that a thread asks for, and the power of two that makes fixed-point numbers of x.
struct Factors {
    unsigned scale[STEPS][SCALES], zero[STEPS][SCALES];  // as stored: a conversion here would wait for them
    float power[SCALES], inverse[SCALES];

    WS_DEVICE void read(const Weight& weight, int projection, int start, int width, int tile, int step, int channel) {
#pragma unroll
        for (int each = 0; each < SCALES; ++each) {
            scale[step][each] = zero[step][each] = 0;
            if (BITS == 8) {
                scale[step][each] = static_cast<const unsigned*>(weight.scales)[projection * IN + channel];
            } else {
                // Groups beyond the width have no columns; the first one stands for them.
                const int group = (start + tile * TILE) / GROUP + (tile * TILE + each * GROUP < width ? each : 0);
                const size_t at = static_cast<size_t>(group) * IN + channel;
                scale[step][each] = static_cast<const unsigned short*>(weight.scales)[at];
                if (ZEROS) zero[step][each] = weight.zeros[at];
            }
        }
    }
    WS_DEVICE float scaled(float x, int step, int each) const {
        return x * (BITS == 8 ? float_of_bits(scale[step][each]) : of_half(scale[step][each]));
    }
    // Find the power of two, and what zero points add up to.
    WS_DEVICE void survey(Rows& rows, int list, const unsigned (&kept)[STEPS], const float (&x)[STEPS], int warp,
                          int lane) {
#pragma unroll
        for (int each = 0; each < SCALES; ++each) {
            unsigned largest = 0;
            float offset = 0.0f;
#pragma unroll
            for (int step = 0; step < STEPS; ++step)
                if (kept[step] >> lane & 1u) {
                    const float value = scaled(x[step], step, each);
                    const unsigned bits = bits_of_float(fabsf(value));
                    largest = bits > largest ? bits : largest;
                    if (ZEROS) offset += value * (static_cast<int>(zero[step][each]) - 8);
                }
            if (ZEROS) offset = warp_sum(offset);
            if (ZEROS && lane == 0) rows.offset[list][each][warp] = offset;
            const int exponent = warp_max(largest) >> 23;
            const int raised = 283 - exponent < 253 ? 283 - exponent : 253;  // so that |x| is below 2^30
            power[each] = float_of_bits(raised << 23);
            // What is not finite makes the sums NaN.
            inverse[each] = exponent == 255 ? float_of_bits(0x7fc00000u) : float_of_bits(254 - raised << 23);
        }
    }
    WS_DEVICE unsigned digits(float x, int step, int each) const {
        const int fixed = rounded_integer(scaled(x, step, each) * power[each]);
        return static_cast<unsigned>(fixed) + 0x808080u ^ 0x808080u;
    }
};

// Four columns as signed bytes; of 4 bits the even or the odd ones of eight, times 16, less their zero point of 8.
WS_DEVICE unsigned quad(const Words<WORDS>& read, int each) {
    if (BITS == 8) return read.words[each];
    const unsigned word = read.words[each / 2];
    return ((each % 2 ? word : word << 4) ^ 0x80808080u) & 0xf0f0f0f0u;
}

// Where the columns of a lane lie in the first row, and how many there are up to the end of the projection.
struct Columns {
    const unsigned char* at;
    int left;

    WS_DEVICE Columns(const Weight& weight, int start, int width, int tile, int lane) {
        const int column = tile * TILE + lane / 4 * LANE_COLUMNS;
        at = static_cast<const unsigned char*>(weight.values) + static_cast<size_t>(start + column) * BITS / 8;
        left = width - column;
    }
};

// Bring rows of a warp into the second cache.
WS_DEVICE void ask_ahead(const Weight& weight, int start, int width, int tile, int begin, int end, int warp, int lane) {
    const Columns columns(weight, start, width, tile, lane);
#pragma unroll
    for (int turn = 0; turn < AHEAD; ++turn) {
        // The order in which the warp lists its channels.
        const int own = turn * AT_ONCE + lane % 4, channel = begin + own / 32 * THREADS + warp * 32 + own % 32;
#pragma unroll
        for (int piece = 0; piece < PIECES; ++piece)
            if (channel < end && piece * PIECE_COLUMNS < columns.left)
                ask_for(columns.at + channel * ROW_BYTES + piece * 8 * PIECE);
    }
}

// Lists of a warp's own channels, which waits for no other before the sums.
struct Lists {
    int total[LISTS];
    Words<WORDS> read[UNROLL][PIECES];  // rows that a lane has on their way,
    unsigned digits[UNROLL][SCALES];    // and what they are multiplied with

    // List the channels and ask for the first rows; neither needs x.
    WS_DEVICE void begin(Rows& rows, const unsigned (&kept)[LISTS][STEPS], const Weight& weight, int start, int width,
                         int tile, int begin, int warp, int lane) {
#pragma unroll
        for (int list = 0; list < LISTS; ++list) {
            int place = warp * STEPS * 32;
#pragma unroll
            for (int step = 0; step < STEPS; ++step) {
                const unsigned before = kept[list][step] & ((1u << lane) - 1u);
                if (kept[list][step] >> lane & 1u)
                    rows.channel[list][place + bits_of(before)] = begin + step * THREADS + warp * 32 + lane;
                place += bits_of(kept[list][step]);
            }
            total[list] = place - warp * STEPS * 32;
        }
        warp_barrier();
        const Columns columns(weight, start, width, tile, lane);
#pragma unroll
        for (int turn = 0; turn < UNROLL; ++turn)
            ask(rows, turn, 0, warp, turn * AT_ONCE + lane % 4, total[0], columns.at, columns.left);
    }

    WS_DEVICE void fill(Rows& rows, const unsigned (&kept)[LISTS][STEPS], Factors (&factors)[LISTS],
                        const float (&x)[STEPS], int, int warp, int lane) {
#pragma unroll
        for (int list = 0; list < LISTS; ++list) {
            factors[list].survey(rows, list, kept[list], x, warp, lane);
            int place = warp * STEPS * 32;
#pragma unroll
            for (int step = 0; step < STEPS; ++step) {
                const unsigned before = kept[list][step] & ((1u << lane) - 1u);
                if (kept[list][step] >> lane & 1u) {
#pragma unroll
                    for (int each = 0; each < SCALES; ++each)
                        rows.digits[list][each][place + bits_of(before)] = factors[list].digits(x[step], step, each);
                }
                place += bits_of(kept[list][step]);
            }
        }
        warp_barrier();
    }

    // No branch, which would wait for the channel.
    WS_DEVICE void ask(const Rows& rows, int turn, int list, int warp, int wanted, int kept,
                       const unsigned char* columns, int left) {
        const unsigned char* row = columns + rows.channel[list][entry_of(warp, wanted)] * ROW_BYTES;
#pragma unroll
        for (int piece = 0; piece < PIECES; ++piece)
            read[turn][piece] = streamed_words<WORDS>(row + piece * 8 * PIECE,
                                                      wanted < kept && piece * PIECE_COLUMNS < left);
    }
    WS_DEVICE void take(const Rows& rows, int turn, int list, int warp, int wanted, int kept) {
#pragma unroll
        for (int each = 0; each < SCALES; ++each) {
            const unsigned listed = rows.digits[list][each][entry_of(warp, wanted)];
            digits[turn][each] = wanted < kept ? listed : 0u;
        }
    }
    static WS_DEVICE int entry_of(int warp, int wanted) {
        constexpr int LAST = STEPS * 32 - 1;
        return warp * STEPS * 32 + (wanted < LAST ? wanted : LAST);
    }

    // The sums of a warp's share of every list's rows, (LISTS, TILE). Rows are asked for where those before have just
    // been multiplied, and those of the next list behind the last of one.
    WS_DEVICE void multiply(const Rows& rows, const Weight& weight, int start, int width, int tile,
                            const Factors (&factors)[LISTS], int warp, int lane, float (&found)[LISTS][WARPS][TILE]) {
        constexpr int STRIDE = UNROLL * AT_ONCE;
        const int group = lane / 4, of_group = lane % 4;
        const Columns columns(weight, start, width, tile, lane);
        // Byte `group % 2` of the digits at the place `group / 2`, zeros elsewhere; then the same of the upper two.
        const unsigned place = group / 2 * 4, lower = 0x4444u - (4 - group % 2 << place), upper = lower + (2 << place);
#pragma unroll
        for (int turn = 0; turn < UNROLL; ++turn)
            take(rows, turn, 0, warp, turn * AT_ONCE + of_group, total[0]);
#pragma unroll
        for (int list = 0; list < LISTS; ++list) {
            int sums[PIECES][QUADS / 2][2][4] = {};
            int begin = 0;
            bool more;
            do {  // once at least: the batch is this list's
                begin += STRIDE;
                more = begin < total[list];
                const int then = more ? list : LISTS - 1, upon = (more ? begin : 0) + of_group;
                const int kept_then = more ? total[list] : list + 1 < LISTS ? total[LISTS - 1] : 0;
#pragma unroll
                for (int turn = 0; turn < UNROLL; turn += 2) {
#pragma unroll
                    for (int piece = 0; piece < PIECES; ++piece) {
                        const int scale = SCALES == 1 ? 0 : piece * PIECE_COLUMNS / GROUP;
                        const unsigned one = digits[turn][scale], other = digits[turn + 1][scale];
#pragma unroll
                        for (int pair = 0; pair < QUADS / 2; ++pair) {
                            const unsigned quads[4] = {
                                quad(read[turn][piece], 2 * pair), quad(read[turn][piece], 2 * pair + 1),
                                quad(read[turn + 1][piece], 2 * pair),
                                quad(read[turn + 1][piece], 2 * pair + 1)};
                            int(&to)[2][4] = sums[piece][pair];
                            add_products(to[0], quads, chosen_bytes(one, lower), chosen_bytes(other, lower));
                            add_products(to[1], quads, chosen_bytes(one, upper), chosen_bytes(other, upper));
                        }
                    }
                    if (more || list + 1 < LISTS) {
                        const unsigned char* at = columns.at + static_cast<size_t>(then) * WIDTH * BITS / 8;
#pragma unroll
                        for (int each = turn; each < turn + 2; ++each) {
                            ask(rows, each, then, warp, upon + each * AT_ONCE, kept_then, at, columns.left);
                            take(rows, each, then, warp, upon + each * AT_ONCE, kept_then);
                        }
                    }
                }
            } while (more);
#pragma unroll
            for (int piece = 0; piece < PIECES; ++piece) {
                const int scale = SCALES == 1 ? 0 : piece * PIECE_COLUMNS / GROUP;
                const float unit = factors[list].inverse[scale] * (BITS == 8 ? 1.0f : 0.0625f);
#pragma unroll
                for (int each = 0; each < QUADS; ++each) {
                    const int(&two)[2][4] = sums[piece][each / 2];
                    const int at = each % 2 * 2;
                    const float sum =
                        16777216.0f * two[1][at + 1] + 65536.0f * two[1][at] + 256.0f * two[0][at + 1] + two[0][at];
                    const int within = BITS == 8 ? each * 4 + of_group : each / 2 * 8 + of_group * 2 + each % 2;
                    found[list][warp][piece * PIECE_COLUMNS + group * LANE_COLUMNS + within] = sum * unit;
                }
            }
        }
    }
};

// What belongs to a column of the weight beside its values: its scale.
WS_DEVICE float of_column(const Weight& weight, int column) { return BITS == 8 ? weight.column_scales[column] : 0.0f; }

// A sum over the warps with its column's scale, or the zero points of its group.
WS_DEVICE float completed(const Rows& rows, int list, int column, float scale, float sum) {
    if (BITS == 8) return sum * scale;
    if (!ZEROS) return sum;
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) sum -= rows.offset[list][SCALES == 1 ? 0 : column % TILE / GROUP][warp];
    return sum;
}
