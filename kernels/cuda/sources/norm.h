// RMSNorm of the residual stream where its consumer reads it, rounded where the model rounds. Constants in capitals:
// IN channels; NORM 1: x is the normalised residual stream, EPSILON its epsilon, 0: x is given; SQUARES parts of the
// residual stream's sum of squares; THREADS, WARPS of a thread block.
#pragma once

constexpr int SQUARE_SUMS = NORM ? (SQUARES + 31) / 32 : 1;  // each of 32 parts
constexpr int SQUARE_TURNS = (SQUARE_SUMS + WARPS - 1) / WARPS;

// What is normalised, float32, or x itself, in half precision.
WS_DEVICE float from_source(const void* source, int channel) {
    return NORM ? from_producer(static_cast<const float*>(source) + channel)
                : widened(from_producer(static_cast<const unsigned short*>(source) + channel));
}

// Parts of the sum of squares, each of which one warp of a thread block asks for: thread blocks all read the same few
// lines, and where each of their warps did they would wait in line for them.
struct Squares {
    float parts[SQUARE_TURNS];

    WS_DEVICE void ask(const float* squares, int warp, int lane) {
#pragma unroll
        for (int turn = 0; turn < SQUARE_TURNS; ++turn) {
            const int at = (turn * WARPS + warp) * 32 + lane;
            parts[turn] = at < SQUARES ? from_producer(squares + at) : 0.0f;
        }
    }
    // Leave the warp's sums for the thread block.
    WS_DEVICE void leave(float (&sums)[SQUARE_SUMS], int warp, int lane) const {
#pragma unroll
        for (int turn = 0; turn < SQUARE_TURNS; ++turn) {
            if (turn * WARPS + warp >= SQUARE_SUMS) break;
            const float sum = warp_sum(parts[turn]);
            if (lane == 0) sums[turn * WARPS + warp] = sum;
        }
    }
};

// 1/sqrt(mean square + epsilon), of the sums that the warps have left.
WS_DEVICE float inverse_norm(const float (&sums)[SQUARE_SUMS]) {
    float total = 0.0f;
#pragma unroll
    for (int each = 0; each < SQUARE_SUMS; ++each) total += sums[each];
    return 1.0f / sqrtf(total / IN + EPSILON);
}

WS_DEVICE float normalised(float value, float inverse, float gain) {
    return widened(rounded(widened(rounded(value * inverse)) * gain));
}
