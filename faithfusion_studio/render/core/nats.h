// The last step of an EIG map: from what the Gaussians leave open at a pixel to nats.
#pragma once
#include "image.h"

namespace ff {

struct NatsImage {
    SkyView view;              // of the sky's evidence; its alpha is the opacity of the Gaussians
    const float* gain;         // G packed [H, W, 6], or its trace [H, W]
    bool trace;                // what gain holds
    bool log_det;              // 1/2 log det(I + G), else 1/2 tr G
    const float* evidence;     // [6, R, R] of every sky direction, or null
    float void_variance;       // of the colour behind everything where no view has looked
    float precision;           // 1 / sigma_0^2
    int knot_count;
    const float* knots;        // [knot_count, 2] nats and calibrated value, both ascending
    float *nats, *calibrated;  // [H, W]
    float *mean_gain;          // [H, W] tr G / 3
    float *behind;             // [H, W] variance of the colour behind everything
};

}  // namespace ff
