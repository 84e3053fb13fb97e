// What native_step.py tells a decode step of a model: sizes and addresses. All fields are 8 bytes wide.
#pragma once

#include "types.h"

enum Keeping : int64_t { ALL, THRESHOLD, TOP_K, SHARED_SUM, SHARED_MAXIMUM, BOUNDED };

// How the channels of a projection are chosen.
struct Rule {
  int64_t keeping;
  const float *numbers; // (channels,) thresholds or weights of scores
  int64_t top_k;   // of thresholds within bounds: the most
  int64_t fewest;  // of these, too
};

// One projection, or dense ones beside each other, with an own rule and maybe a low-rank path.
struct Part {
  Weight weight;
  Rule rule;
  int64_t first_column; // of the site's output
  int64_t rank;         // 0: there is none
  Weight right, left;   // (rank, in), (out, rank)
};

// Projections that read the same x.
struct Site {
  const Part *parts;
  int64_t count;
  int64_t channels, columns;
  const float *bias; // (columns,) or null
};

struct Block {
  const float *input_norm, *mlp_norm;
  const float *query_norm, *key_norm; // null: there is none
  Site qkv, o, gate_up, down;
  Site input_basis, mlp_basis;  // that x is multiplied by before qkv and gate_up; without a part where it is not
  Site adapter;                 // the same of the residual stream behind the block
  const float *gate_thresholds; // null: not gated; else gate_up is the gate alone
  Weight up_rows;               // (ffn, hidden) of a gated block, and of one that chooses neurons before its gate
  Weight gate_rows;             // (ffn, hidden) of the latter
  const uint64_t *signs;        // (ffn, words) of gate's rows, see signs.h; null: not predicted
  int64_t sign_limit;           // most unlike signs of a neuron that is computed
  Site proxies;                 // gate's and up's, the second half of the columns; no part: there are none
  int64_t chosen;               // neurons that they choose
  void *keys, *values;          // (batch, kv_heads, capacity, head_dim)
  int64_t window;               // slots that a token sees, all of them where 0
  Weight neuron_router;         // (groups, hidden), whose logits choose groups of neurons; without rows: none
  double router_threshold;      // above which they do
  Weight router;                // (heads, hidden), whose logits choose key-value groups
  const float *router_bias;     // (heads,); null: attention looks at all groups
  int64_t kept_groups;          // that a token looks at
};

struct Model {
  const Block *blocks;
  int64_t block_count;
  int64_t batch, hidden, ffn, heads, kv_heads, head_dim, vocabulary, capacity;
  double norm_epsilon;
  Weight embedding;
  const float *final_norm;
  Weight head;     // (vocabulary, hidden), in floating point
  Site head_site;  // (hidden, vocabulary), in few bits; then it has a part
  const float *cosines, *sines; // (capacity, head_dim)
  const int32_t *first;         // (batch,) first slot of each row that is no padding
  int64_t cache_is_bfloat16;
  int64_t relu; // gates pass through ReLU instead of SiLU
};
