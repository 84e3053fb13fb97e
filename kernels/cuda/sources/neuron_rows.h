// Rows of gate and of up of a thread block's neurons that are computed. Shared memory has `x` (IN,), `computed` (32,) and
// `hidden` (NEURONS,), which is 0 at first. Constants: see predicted.cu and ranked.cu, which include this.
#pragma once

constexpr int COLUMNS_OF_LANE = 8;  // of a Row
constexpr int STRIDE = 32 * COLUMNS_OF_LANE;

// A row of a weight times x, the same in all lanes.
template <typename Shared>
WS_DEVICE float row_product(const unsigned short* row, const Shared& s, int lane) {
    float sum = 0.0f;
    for (int begin = lane * COLUMNS_OF_LANE; begin < IN; begin += STRIDE * UNROLL) {
        Row rows[UNROLL];
#pragma unroll
        for (int part = 0; part < UNROLL; ++part)
            if (begin + part * STRIDE < IN) rows[part] = streamed_row(row + begin + part * STRIDE);
#pragma unroll
        for (int part = 0; part < UNROLL; ++part) {
            if (begin + part * STRIDE >= IN) break;
            const Row x = *reinterpret_cast<const Row*>(&s.x[begin + part * STRIDE]);
#pragma unroll
            for (int word = 0; word < 4; ++word) {
                sum += widened(rows[part].words[word] & 0xffffu) * widened(x.words[word] & 0xffffu);
                sum += widened(rows[part].words[word] >> 16) * widened(x.words[word] >> 16);
            }
        }
    }
    return warp_sum(sum);
}

// hidden = activated gate times up of the neurons from `first` on that are computed; of a gate that is zero the row of up
// is not read. The whole thread block calls it, once it sees all of shared memory.
template <typename Shared>
WS_DEVICE void compute_neurons(int first, const unsigned short* gate_rows, const unsigned short* up_rows,
                               unsigned short* hidden, Shared& s) {
    const int thread = thread_index(), warp = thread / 32, lane = thread % 32;
    // Each warp takes every WARPS-th neuron of those that are computed.
    unsigned left = warp_ballot(s.computed[lane]);
    for (int place = 0; left; left &= left - 1u, ++place) {
        if (place % WARPS != warp) continue;
        const int neuron = bits_of((left & 0u - left) - 1u);
        const size_t row = static_cast<size_t>(first + neuron) * IN;
        const float gate = activated(widened(rounded(row_product(gate_rows + row, s, lane))));
        if (gate == 0.0f) continue;
        const float up = widened(rounded(row_product(up_rows + row, s, lane)));
        if (lane == 0) s.hidden[neuron] = rounded(gate * up);
    }
    block_barrier();
    if (thread < NEURONS && first + thread < WIDTH) hidden[first + thread] = s.hidden[thread];
}
