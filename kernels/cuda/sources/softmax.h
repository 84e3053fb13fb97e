// The softmax of a warp: what attention.cu does with the keys and values that it has read. Included where the lanes
// of a warp and the shared memory are defined.

// Add values over the lanes of a slot; each lane keeps KEPT of the sums. Halves are exchanged, so that there are about
// as many exchanges as values.
template <int APART, int COUNT>
WS_DEVICE void share_sums(float* values, int lane) {
    if constexpr (COUNT > 1) {
        const bool upper = lane & APART;
#pragma unroll
        for (int each = 0; each < COUNT / 2; ++each) {
            const float low = values[each], high = values[each + COUNT / 2];
            values[each] = (upper ? high : low) + warp_exchange(upper ? low : high, APART);
        }
    } else {
        values[0] += warp_exchange(values[0], APART);
    }
    if constexpr (APART > 1) share_sums<APART / 2, (COUNT > 1 ? COUNT / 2 : 1)>(values, lane);
}

// The softmax of a warp over the slots of its lanes.
struct Softmax {
    float highest[KEPT];         // by head that the lane holds scores of, the same in all that do
    float totals[QUERIES] = {};  // over the lane's slots
    float sums[QUERIES][8] = {};

    WS_DEVICE Softmax() {
#pragma unroll
        for (int each = 0; each < KEPT; ++each) highest[each] = LOWEST;
    }

    // Weights of a step's slots, left for the warp; slots before `lowest` and after `length` have none.
    WS_DEVICE void weigh(const Row (&keys)[UNROLL], Shared& s, int begin, int lowest, int length, int warp, int lane) {
        float scores[UNROLL * PADDED] = {};
#pragma unroll
        for (int head = 0; head < QUERIES; ++head) {
            const Four* four = reinterpret_cast<const Four*>(s.queries[head]) + lane % LANES * 2;
            const Four query[2] = {four[0], four[1]};
#pragma unroll
            for (int turn = 0; turn < UNROLL; ++turn) {
                float key[8];
                widen(keys[turn], key);
#pragma unroll
                for (int each = 0; each < 8; ++each)
                    scores[turn * PADDED + head] += query[each / 4].values[each % 4] * key[each];
            }
        }
        share_sums<LANES / 2, UNROLL * PADDED>(scores, lane);
        const int turn = lane % LANES / HOLDERS, row = lane / LANES;
        const int slot = begin + turn * STRIDE, head = lane % HOLDERS / COPIES * KEPT;
        const bool live = slot >= lowest && slot <= length;
#pragma unroll
        for (int each = 0; each < KEPT; ++each) {
            const float score = scores[each] * SCALE;
            float higher = live ? fmaxf(score, LOWEST) : LOWEST;  // NaN shows in the weight
            for (int apart = HOLDERS; apart < 32; apart *= 2) higher = fmaxf(higher, warp_exchange(higher, apart));
            higher = fmaxf(higher, highest[each]);
            s.weights[warp][turn * ROWS + row][head + each] = live ? exp2f(score - higher) : 0.0f;
            if (lane < HOLDERS) s.weights[warp][UNROLL * ROWS][head + each] = exp2f(highest[each] - higher);
            highest[each] = higher;
        }
        warp_barrier();
    }

    WS_DEVICE void add(const Row (&values)[UNROLL], Shared& s, bool again, int warp, int lane) {
        if (again) {
#pragma unroll
            for (int head = 0; head < QUERIES; ++head) {
                const float shrink = s.weights[warp][UNROLL * ROWS][head];
                totals[head] *= shrink;
#pragma unroll
                for (int each = 0; each < 8; ++each) sums[head][each] *= shrink;
            }
        }
#pragma unroll
        for (int turn = 0; turn < UNROLL; ++turn) {
            float value[8];
            widen(values[turn], value);
#pragma unroll
            for (int head = 0; head < QUERIES; ++head) {
                const float weight = s.weights[warp][turn * ROWS + lane / LANES][head];
                totals[head] += weight;
#pragma unroll
                for (int each = 0; each < 8; ++each) sums[head][each] += weight * value[each];
            }
        }
    }

    // Leave the warp's sums for the thread block.
    WS_DEVICE void leave(Shared& s, int warp, int lane) {
#pragma unroll
        for (int head = 0; head < QUERIES; ++head) {
            for (int apart = LANES; apart < 32; apart *= 2) {
                totals[head] += warp_exchange(totals[head], apart);
#pragma unroll
                for (int each = 0; each < 8; ++each) sums[head][each] += warp_exchange(sums[head][each], apart);
            }
            if (head % ROWS == lane / LANES) {
                Four* to = reinterpret_cast<Four*>(s.sums[warp][head]) + lane % LANES * 2;
#pragma unroll
                for (int half = 0; half < 2; ++half)
                    to[half] = {sums[head][4 * half], sums[head][4 * half + 1], sums[head][4 * half + 2],
                                sums[head][4 * half + 3]};
            }
            if (lane == 0) s.totals[warp][head] = totals[head];
        }
        const int head = lane % HOLDERS / COPIES * KEPT;
#pragma unroll
        for (int each = 0; each < KEPT; ++each)
            if (lane < HOLDERS && lane % COPIES == 0 && head + each < QUERIES)
                s.highest[warp][head + each] = highest[each];
    }
};
