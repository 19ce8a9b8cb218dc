// Chain rules of the information passes: screen record (mean2d 2, cov2d 3 as xx xy yy, opacity logit, colour 3) against
// the parameters of one Gaussian (mean 3, rotation tangent 3 in body axes, log-scale 3, opacity logit, sh0 3).
#pragma once
#include "frame.h"

namespace ff {

constexpr int kParameters = 13, kRecord = 9;
constexpr int kBlock = kParameters * (kParameters + 1) / 2;   // 91, packed triangle
constexpr int kPacked = kRecord * (kRecord + 1) / 2;          // 45, packed upper triangle

struct ChainView {   // Gaussians in world axes as one camera sees them
    const float *means, *quats, *scales;
    const float *sh0, *bands;        // [n, 3] first and [n, band_count, 3] higher SH coefficients
    int band_count, sh_degree;
    const int32_t* visible;          // [count] which Gaussians to handle
    int64_t count;
    const int32_t* rows;             // [n] row in the evidence of each Gaussian, or null: the same
    const int32_t* nodes;            // [n] moving object of each Gaussian or -1, or null
    const float* node_rotations;     // [nodes, 3, 3] node -> world
    const float* color_rotations;    // [nodes, 3, 3] the same where the SH bands are kept in the node's axes, else the identity; or null
    Camera cam;
};

struct Posterior {   // what is known of the parameters
    // block form [n, 91]: inverse Cholesky factors of H + prior, packed lower triangles by rows;
    // diagonal form [n, 16]: 1 / (diagonal of H + prior), three unused
    const float* factors;
    const float* sh_evidence;   // [n, R, 3] diagonal Fisher of the higher SH coefficients, or null: leave their term out
    float sh_prior, scale;
};

struct ChainKernels {
    // blocks [n, 91] += A^T S A, sh_evidence [n, R, 3] += basis^2 S_cc; information [n, 45] is indexed as the Gaussians
    void (*fisher)(const ChainView&, int threads, const float* information, float* blocks, float* sh_evidence);
    // factors [count, 91]: inverse Cholesky factors of H + prior, packed lower triangle by rows
    void (*factor)(int threads, int64_t count, const float* blocks, const float* prior, bool diagonal, float* factors);
    // out [n, 45] = A (H + prior)^-1 A^T scale, plus the diagonal term of the higher SH bands; block form only
    void (*posterior)(const ChainView&, const Posterior&, int threads, float* out);
};

}  // namespace ff
