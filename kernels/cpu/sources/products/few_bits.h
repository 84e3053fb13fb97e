// Products of activations in 16 bits with weights in 8 and 4, in integers: product.cpp.
//
// RUN kept rows at a time, an activation times the scale of its row or group becomes an integer of 16 bits: its
// multiple of a unit, which is the largest such product of the run over LARGEST_FACTOR. In 4 bits each group of
// columns has a unit of its own. Sums of a run are exact, and become floats once. So a sum is off by at most
// half of its unit times the sum of the weights' magnitudes, and by the roundings of one float a run.
//
// Weights are multiplied as they are stored, as bytes without sign; their zero points are one more column, whose
// sum is taken off at the end. Of two values of 4 bits in a byte, the lower is summed and the whole byte is: the
// difference is sixteen times the upper.
#pragma once

#include "products/integers.h"
#include "products/rows.h"

#include <limits>
#include <vector>

constexpr int64_t RUN = 128; // sixteen times its largest sum, 128 · LARGEST_FACTOR · 15, fits 32 bits
constexpr int QUADS = ROWS / QUAD;
constexpr int AHEAD = 2; // steps of ROWS rows that are asked for before they are read
constexpr int64_t SCALES_AHEAD = 24; // rows whose scales are
constexpr float SMALLEST_PEAK = 0x1p-100f; // of a unit that float32 holds, with its inverse

// What differs between the formats: vectors of sums of one of four vectors of bytes, zero points without own ones.
template <int64_t STORED> struct FewBits;
template <> struct FewBits<INT8_BY_INTEGERS> { // with a sign, whose bit is turned over
  static constexpr int values = 1;
  static constexpr uint32_t turned = 0x80808080u, zeros = 0x80808080u;
};
template <> struct FewBits<INT4_BY_INTEGERS> {
  static constexpr int values = 2;
  static constexpr uint32_t turned = 0, zeros = 0x08080808u;
};

// ONE: x has one row.
template <int64_t STORED, bool ONE> class Run {
public:
  // Of columns from `begin` on, whose rows' first bytes are at `tile`.
  Run(const Weight &weight, int64_t batch, const uint8_t *tile, int64_t begin, int64_t columns)
      : weight(weight), tile(tile), any_batch(batch), begin(begin), columns(columns),
        group(STORED == INT8_BY_INTEGERS ? std::max(weight.columns, int64_t{1}) : weight.group), first_group(begin / group),
        groups((begin + columns - 1) / group + 1 - first_group),
        stride((groups + LANES - 1) / LANES * LANES + LANES), // room to load a vector behind the last
        even(STORED == INT8_BY_INTEGERS || group % BYTES_BLOCK == 0 || (BYTES_BLOCK % group == 0 && group % 8 == 0)) {
    if (!even || STORED == INT8_BY_INTEGERS) return;
    const bool within = group < BYTES_BLOCK; // then both are powers of two
    const int shift = within ? __builtin_ctzll(group) : 31;
    for (int k = 0; k < QUAD; ++k)
      for (int lane = 0; lane < LANES; ++lane)
        lane_group[k][lane] = (lane / 4 * 16 + 4 * k + lane % 4) * VALUES >> shift;
    int64_t left = within ? 0 : group - begin % group;
    for (int64_t block = 0, found = 0; block * BYTES_BLOCK < columns; ++block, left -= BYTES_BLOCK) {
      if (!within && left == 0) ++found, left = group;
      block_groups[block] = static_cast<int32_t>(within ? block * BYTES_BLOCK >> shift : found);
    }
  }

  // sums[block][row of the batch][place] += the products of RUN kept rows from `first` on, or to before `last`. Never
  // inlined: its inner loop then has fewer registers, and 4 bits take 4 to 8 % longer with AVX-512.
  __attribute__((noinline)) void add(const Kept &kept, int64_t first, int64_t last, float *sums) {
    const int64_t count = std::min(RUN, last - first), steps = (count + ROWS - 1) / ROWS;
    const uint8_t *rows[RUN + AHEAD * ROWS];
    for (int64_t step = 0; step < steps + AHEAD; ++step)
      find_rows<ROWS>(kept, first + step * ROWS, last, tile, weight.stride, rows + step * ROWS);
    for (int64_t offset = 0; offset < columns / VALUES; offset += 64) // they come while factors are found
      ask_ahead<AHEAD * ROWS>(rows, offset, 64);
    find_factors(kept, first, count);
    std::memset(whole, 0, sizeof(int32_t) * batch() * ((columns + BYTES_BLOCK - 1) / BYTES_BLOCK * BYTES_BLOCK));
    for (int64_t step = 0; step < steps; ++step) {
      words = words_of(step * QUADS);
      if (!even) add_values(rows + step * ROWS);
      else if (group >= 32 || STORED == INT8_BY_INTEGERS) add_rows<true>(rows + step * ROWS);
      else add_rows<false>(rows + step * ROWS);
    }
    even ? add_sums(sums) : add_sums_of_values(sums);
  }

private:
  int64_t batch() const { return ONE ? 1 : any_batch; }
  static constexpr int VALUES = FewBits<STORED>::values, BYTES_BLOCK = VECTOR_BYTES * VALUES; // columns
  static constexpr int64_t MOST = TILE_FLOATS + 2 * LARGEST_BATCH * LANES;

  // Factors of a run by quad, digit, row of the batch and group; elsewhere pairs of rows instead of digits.
  uint32_t *words_of(int64_t quad) const { return room + quad * 2 * batch() * stride; }

  // Units and factors of `count` kept rows from `first` on, 0 behind them, and their sums of zero points.
  void find_factors(const Kept &kept, int64_t first, int64_t count) {
    const int64_t quads = (count + ROWS - 1) / ROWS * QUADS;
    room = words_for(quads * 2 * batch() * stride);
    if (STORED == INT8_BY_INTEGERS) return find_factors_of_rows(kept.values + first * batch(), count, quads);
    for (int64_t g = 0; g < groups; g += LANES)
      for (int64_t b = 0; b < batch(); ++b) {
        Floats products[RUN];
        Integers peak = {}, zeros = {};
        for (int64_t i = 0; i < count; ++i) {
          const int64_t at = kept.channels[first + i] * weight.scale_stride + first_group + g;
          const int64_t later = kept.channels[std::min(first + i + SCALES_AHEAD, kept.count - 1)];
          __builtin_prefetch(weight.scales + later * weight.scale_stride + first_group + g);
          products[i] = load_halves(weight.scales + at, groups - g) * kept.values[(first + i) * batch() + b];
          peak = larger(peak, products[i]);
        }
        std::fill(products + count, products + quads * QUAD, Floats{});
        const Floats inverse = find_unit(peak, units + b * stride + g);
        for (int64_t q = 0; q < quads; ++q) {
          Words rounded[QUAD];
          for (int r = 0; r < QUAD; ++r) rounded[r] = rounded_to_words(products[q * QUAD + r] * inverse);
          const Factors found[1] = {factors_of(rounded)};
          const Words points[1] = {zeros_of(kept, first + q * QUAD, first + count, g)};
          zeros = dot_quads(zeros, points, found);
          store_vector(found->first, words_of(q) + b * stride + g);
          store_vector(found->second, words_of(q) + (batch() + b) * stride + g);
        }
        store_vector(zeros, zero_sums + b * stride + g);
      }
  }

  // The same where a row has one factor, which is in its kept value. The lanes of a vector are quads.
  void find_factors_of_rows(const float *values, int64_t count, int64_t quads) {
    for (int64_t b = 0; b < batch(); ++b) {
      float products[QUAD][RUN / QUAD] = {};
      for (int64_t i = 0; i < count; ++i) products[i % QUAD][i / QUAD] = values[i * batch() + b];
      Integers peak = {}, sum = {};
      for (const float *place = *products; place < *products + RUN; place += LANES) peak = larger(peak, load_one(place));
      for (int lane = 1; lane < LANES; ++lane) peak[0] = std::max(peak[0], peak[lane]);
      const Floats inverse = find_unit(Integers{} + peak[0], units + b * stride);
      const Words points[1] = {Words{} + FewBits<STORED>::zeros};
      for (int64_t q = 0; q < quads; q += LANES) {
        Words rounded[QUAD];
        for (int r = 0; r < QUAD; ++r) rounded[r] = rounded_to_words(load_one(products[r] + q) * inverse);
        const Factors found[1] = {factors_of(rounded)};
        sum = dot_quads(sum, points, found);
        for (int lane = 0; lane < LANES && q + lane < quads; ++lane) {
          words_of(q + lane)[b * stride] = found->first[lane];
          words_of(q + lane)[(batch() + b) * stride] = found->second[lane];
        }
      }
      for (int lane = 1; lane < LANES; ++lane) sum[0] += sum[lane];
      zero_sums[b * stride] = sum[0];
    }
  }

  // Room for so many words, of each thread; it keeps its memory from call to call.
  static uint32_t *words_for(size_t count) {
    thread_local std::vector<uint32_t> words;
    if (words.size() < count) words.resize(count);
    return words.data();
  }

  // Magnitudes as integers, which are ordered alike, NaN above all.
  static Integers larger(Integers peak, Floats value) {
    const Integers magnitude = (Integers)value & 0x7fffffff;
    return magnitude > peak ? magnitude : peak;
  }

  // 1.5 · 2^23 rounds to integers, which the lower bits are.
  static Words rounded_to_words(Floats value) { return (Words)(value + 12582912.0f); }

  // The unit of products up to a peak, and its inverse. NaN and infinity make all sums NaN.
  static Floats find_unit(Integers peak_bits, float *place) {
    const Integers finite = peak_bits < 0x7f800000;
    Floats peak = (Floats)peak_bits;
    peak = peak < SMALLEST_PEAK ? Floats{} + SMALLEST_PEAK : peak;
    const Floats unit = finite ? peak / LARGEST_FACTOR : Floats{} + std::numeric_limits<float>::quiet_NaN();
    store_vector(unit, place);
    return finite ? LARGEST_FACTOR / peak : Floats{};
  }

  // Zero points of a quad of rows as bytes of a weight, of LANES groups.
  Words zeros_of(const Kept &kept, int64_t first, int64_t last, int64_t g) const {
    if (!weight.zeros) return Words{} + FewBits<STORED>::zeros;
    Words zeros = {};
    for (int64_t r = 0; r < std::min<int64_t>(QUAD, last - first); ++r) {
      const int64_t at = kept.channels[first + r] * weight.scale_stride + first_group + g;
      for (int64_t lane = 0; lane < std::min<int64_t>(LANES, groups - g); ++lane)
        zeros[lane] |= static_cast<uint32_t>(weight.zeros[at + lane]) << 8 * place_of_row(r);
    }
    return zeros;
  }

  // The factors of vector k of a block whose first group is g.
  Factors factors_at(int q, int64_t place, int k) const {
    const uint32_t *const found = words + q * 2 * batch() * stride + place;
    if (STORED == INT8_BY_INTEGERS) return {Words{} + found[0], Words{} + found[batch() * stride]};
    return {__builtin_shuffle(load_vector<Words>(found), lane_group[k]),
            __builtin_shuffle(load_vector<Words>(found + batch() * stride), lane_group[k])};
  }

  int64_t group_of_block(int64_t column) const {
    return STORED == INT8_BY_INTEGERS ? 0 : block_groups[column / BYTES_BLOCK];
  }

  int64_t group_at(int64_t column) const { return (begin + column) / group - first_group; }

  // ALIKE: the four vectors of a block have the same groups.
  template <bool ALIKE> void add_rows(const uint8_t *const *rows) {
    int64_t column = 0;
    for (; column + BYTES_BLOCK <= columns; column += BYTES_BLOCK) {
      ask_ahead<ROWS>(rows + AHEAD * ROWS, column / VALUES, VECTOR_BYTES);
      add_block<ALIKE>(column, [&](int i) { return load_vector<Words>(rows[i] + column / VALUES); });
    }
    if (const int64_t bytes = (columns - column + VALUES - 1) / VALUES)
      add_block<ALIKE>(column, [&](int i) { return load_words(rows[i] + column / VALUES, bytes); });
  }

  template <bool ALIKE, class Load> void add_block(int64_t column, Load &&load_row) {
    int32_t *place = whole + column * batch();
    Words loaded[ROWS], quads[QUADS][QUAD];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) loaded[i] = load_row(i) ^ FewBits<STORED>::turned;
#pragma GCC unroll 16
    for (int q = 0; q < QUADS; ++q) interleave(loaded + q * QUAD, quads[q]);
    for (int64_t b = 0; b < batch(); ++b) {
      const int64_t at = b * stride + group_of_block(column);
      Factors factors[QUADS];
      for (int q = 0; q < QUADS; ++q) factors[q] = factors_at(q, at, 0);
#pragma GCC unroll 16
      for (int k = 0; k < QUAD; ++k) {
        Words bytes[QUADS], lower[QUADS];
        for (int q = 0; q < QUADS; ++q) {
          if (!ALIKE && k) factors[q] = factors_at(q, at, k);
          bytes[q] = quads[q][k];
          lower[q] = bytes[q] & 0x0f0f0f0fu;
        }
        if (VALUES == 2) place = add_dots(place, lower, factors);
        place = add_dots(place, bytes, factors);
      }
    }
  }

  static int32_t *add_dots(int32_t *place, const Words (&bytes)[QUADS], const Factors (&factors)[QUADS]) {
    const Integers sum = dot_quads(load_vector<Integers>(place), bytes, factors);
    store_vector(sum, place);
    return place + LANES;
  }

  void add_sums(float *sums) const {
    const int32_t *place = whole;
    for (int64_t column = 0; column < columns; column += BYTES_BLOCK)
      for (int64_t b = 0; b < batch(); ++b)
        for (int k = 0; k < QUAD; ++k) {
          const int64_t at = b * stride + group_of_block(column);
          const Integers from = STORED == INT8_BY_INTEGERS ? Integers{} : lane_group[k];
          const Floats unit = __builtin_shuffle(load_one(units + at), from);
          const Integers zero = __builtin_shuffle(load_vector<Integers>(zero_sums + at), from);
          Integers exact[VALUES];
          for (int value = 0; value < VALUES; ++value) exact[value] = load_vector<Integers>(place + value * LANES);
          if (VALUES == 2) exact[VALUES - 1] = (exact[VALUES - 1] - exact[0]) >> 4;
          for (int value = 0; value < VALUES; ++value, place += LANES, sums += LANES) {
            const Floats sum = load_one(sums) + __builtin_convertvector(exact[value] - zero, Floats) * unit;
            store_vector(sum, sums);
          }
        }
  }

  // Where groups end inside of words: every value by itself.
  void add_values(const uint8_t *const *rows) {
    for (int i = 0; i < ROWS; ++i)
      for (int64_t c = 0; c < columns; ++c)
        for (int64_t b = 0; b < batch(); ++b) {
          const int packed = rows[i][c / 2], q = i / QUAD;
          const int64_t at = b * stride + group_at(c);
          const uint32_t *const found = words + q * 2 * batch() * stride + at;
          const int factor = factor_of_row(found[0], found[batch() * stride], i % QUAD);
          whole[c * batch() + b] += factor * (c % 2 ? packed >> 4 : packed & 15);
        }
  }

  void add_sums_of_values(float *sums) const {
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t b = 0; b < batch(); ++b) {
        const int64_t at = b * stride + group_at(c);
        float &sum = sums[(c / BYTES_BLOCK * batch() + b) * BYTES_BLOCK + place_of<VALUES>(c % BYTES_BLOCK)];
        sum += static_cast<float>(whole[c * batch() + b] - zero_sums[at]) * units[at];
      }
  }

  const Weight &weight;
  const uint8_t *tile;
  int64_t any_batch, begin, columns, group, first_group, groups, stride;
  bool even; // words lie in one group each, blocks in whole ones or in one
  Integers lane_group[QUAD]; // of the lanes of each vector, from the group of the block's first column
  int32_t block_groups[TILE_FLOATS / LANES]; // of the first column of each block
  alignas(64) int32_t whole[TILE_FLOATS];
  float units[MOST]; // by row of the batch and group
  int32_t zero_sums[MOST];
  uint32_t *room;        // all factors of the run
  const uint32_t *words; // of the rows that stream
};
