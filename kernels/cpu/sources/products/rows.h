// What products of all formats have in common: rows that stream together, and the sums of a tile.
#pragma once

#include "types.h"

#include <algorithm>

constexpr int ROWS = 8;               // kept rows that stream at the same time
constexpr int64_t TILE_FLOATS = 8192; // most sums of one tile, 32 KiB

// Where COUNT kept rows from `index` on begin, and behind `last` the last one once more. tile: in the first row.
template <int COUNT>
inline void find_rows(const Kept &kept, int64_t index, int64_t last, const uint8_t *tile, int64_t stride,
                      const uint8_t **starts) {
  for (int i = 0; i < COUNT; ++i) starts[i] = tile + kept.channels[std::min(index + i, last - 1)] * stride;
}

// Asks for the lines of COUNT rows where they stand `bytes` from `offset` on.
template <int COUNT> inline void ask_ahead(const uint8_t *const *rows, int64_t offset, int bytes) {
  if (bytes < 64 && offset % 64 >= bytes) return;
  for (int i = 0; i < COUNT; ++i)
    for (int line = 0; line < bytes; line += 64) __builtin_prefetch(rows[i] + offset + line, 0, 2);
}
