// Matrix-vector products that read only the kept rows of a weight stored (in, out), for CPUs: product.cpp.
//
// A product is cut into units that threads take as they come: tiles of columns, and of each tile parts of the
// kept rows. Each unit leaves its sums in `partial`; whoever finishes the last part of a tile adds them up, in
// the order of the parts. How many parts there are depends on the kept rows and the format alone, so results are
// the same to the bit whatever the number of threads, the columns beside and the load of the machine.
#pragma once

#include "types.h"

#include <atomic>

constexpr int64_t LARGEST_PARTS = 8;

struct Product {
  Weight weight;
  Kept kept; // values with the scales of their rows in them
  int64_t batch;
  const float *bias; // (columns,) or null
  float *out;        // (batch, columns), rows out_stride apart
  int64_t out_stride;
  int64_t tile;               // columns of one, a multiple of whole blocks
  float *partial;             // partial_floats of them
  std::atomic<int32_t> *done; // finished parts of each tile, 0 before and after
};

int64_t product_tile(const Weight &weight, int64_t batch, int64_t threads); // columns of a tile
int64_t product_tiles(const Weight &weight, int64_t tile);
int64_t partial_floats(const Weight &weight, int64_t batch);
int64_t product_units(const Product &product);
void run_unit(const Product &product, int64_t unit);

// values[i] · the scale of the row of channels[i], for weights that have one; the values themselves otherwise.
const float *scaled_values(const Weight &weight, const Kept &kept, int64_t batch, float *room);
