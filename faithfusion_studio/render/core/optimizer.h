// Adam over the Gaussians that one view saw, with the activations and regularisers around it; densification statistics.
#pragma once
#include "frame.h"

namespace ff {

constexpr int kMaxKinds = 8;
constexpr int kMaxWidth = 48;   // numbers per row: 16 SH coefficients of 3 colours

enum class Activation { None, Exp, Sigmoid };

struct AdamKind {   // one kind of parameter: all arrays [rows, width], row-major
    int width = 1;
    Activation activation = Activation::None;
    float *value = nullptr, *mean = nullptr, *square = nullptr;   // stored value, first and second moment
    float* activated = nullptr;        // activation(value), kept up to date, 4 numbers per row at most; null: the value itself
    const float* gradient = nullptr;   // d loss / d activated value
    const float* rates = nullptr;      // [width] step sizes
};

struct ShapeTerms {   // weights of the regularisers, already divided by the number of rows they average over
    float opacity = 0, scale = 0, flat = 0, shape = 0;
    float max_aspect = 4, voxel = 1;
};

struct AdamCall {
    int64_t rows = 0;
    const uint8_t* visible = nullptr;   // [rows], 0 = leave the row alone; null = all rows
    int32_t* clocks = nullptr;          // [rows, 2]: updates the row has had, and the step of the last one; written
    int32_t now = 1;                    // this step, counted from 1
    float eps = 1e-15f;
    float low = 0, high = 0;            // values are kept in [low, high] where low < high
    int scales = -1, opacities = -1;    // kinds the regularisers act on; -1 = none
    ShapeTerms terms;
};

struct AdamOutcome {
    double regulariser = 0;   // value of the regularisers before the step
    int64_t refused = 0;      // visible rows left alone because a gradient was not finite
};

struct OptimizerKernels {
    AdamOutcome (*adam)(const AdamCall&, const AdamKind* kinds, int count, int threads);
    // out = exp or sigmoid of value, [count]
    void (*activate)(Activation, const float* value, float* out, int64_t count, int threads);
};

}  // namespace ff
