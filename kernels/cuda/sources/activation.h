// What gates pass through, rounded where the model rounds. HIDDEN 1: SiLU; 2: ReLU.
#pragma once

WS_DEVICE float activated(float gate) {
    if (HIDDEN == 2) return gate <= 0.0f ? 0.0f : gate;  // NaN stays
    return widened(rounded(gate / (1.0f + expf(-gate))));
}
