// RMSNorm of the residual stream where its consumer reads it, rounded where the model rounds. Constants in capitals:
// IN channels; NORM 1: x is the normalised residual stream, EPSILON its epsilon, 0: x is given; SQUARES parts of the
// residual stream's sum of squares.
#pragma once

// What is normalised, float32, or x itself, in half precision.
WS_DEVICE float from_source(const void* source, int channel) {
    return NORM ? from_producer(static_cast<const float*>(source) + channel)
                : widened(from_producer(static_cast<const unsigned short*>(source) + channel));
}

// 1/sqrt(mean square + epsilon); every warp adds the parts itself.
WS_DEVICE float inverse_norm(const float* squares, int lane) {
    float total = 0.0f;
#pragma unroll
    for (int part = 0; part < (SQUARES + 31) / 32; ++part) {
        const int at = part * 32 + lane;
        total += at < SQUARES ? from_producer(squares + at) : 0.0f;
    }
    return 1.0f / sqrtf(warp_sum(total) / IN + EPSILON);
}

WS_DEVICE float normalised(float value, float inverse, float gain) {
    return widened(rounded(widened(rounded(value * inverse)) * gain));
}
