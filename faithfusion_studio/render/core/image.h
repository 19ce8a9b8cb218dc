// Passes over whole images that training and viewing need beside the Gaussians: the image loss and the sky.
#pragma once
#include "frame.h"

namespace ff {

struct ImageLoss {   // all images [H, W, 3]; weight [H, W] or null
    int width, height;
    const float *rendered, *image, *weight;
    float ssim_share;
    float* gradient;   // d loss / d rendered
};

// Three colour planes per image, each row `stride` floats from the next and kPad zeros (or more) before and behind it.
constexpr int kPad = 16;
struct ImagePlanes {
    int width, height;
    int64_t stride;          // at least width + 2 kPad, a multiple of 16; a plane is height * stride
    float *shown, *target;   // [3][H][stride]; column x of row y is at y * stride + kPad + x
    const float* weight;     // [H, W] or null
    float ssim_share;
    float* gradient;         // [3][H][stride]
    int64_t plane() const { return (int64_t)height * stride; }
    int64_t row(int y) const { return y * stride + kPad; }
};
inline int64_t padded_stride(int width) { return (width + 15) / 16 * 16 + 2 * kPad; }

struct ViewWeights {   // of the terms of a training view; 0 leaves a term out
    float ssim, depth, ground, plane, sky;
};

struct ViewLoss {
    int width, height;
    const float *rendered, *alpha;   // colour and accumulated depth [H, W, 4], opacity [H, W]
    const float* behind;             // radiance behind the Gaussians [H, W, 3], or null for black
    const float* exposure;           // affine colour correction [3, 4], or null
    const float *image, *weight;     // [H, W, 3], and [H, W] or null
    const int64_t* pixels;           // known depths at [points] flat pixels
    const float* depths;
    int64_t points;
    const float *ground, *sky_share;   // [H, W] or null
    ViewWeights weights;
    float *v_rendered, *v_alpha;     // gradients, as above
    float *v_behind, *v_exposure;    // or null
};

struct SkyView {   // a cube map seen by one camera; faces +x -x +y -y +z -z in world axes
    int width, height, resolution;
    float R[9];        // camera -> world
    float fx, fy, cx, cy;
    const float* alpha;   // [H, W] or null; pixels with 1 - alpha <= transparent are left at zero
    float transparent;
};

struct ImageKernels {
    // mean over pixels and channels of weight ((1 - share) |x - y| + share (1 - SSIM(x, y)))
    double (*loss)(const ImageLoss&, int threads);
    double (*view_loss)(const ViewLoss&, int threads);
    void (*sky)(const SkyView&, int threads, const float* texels, float* image);
    // gradient [6, R, R, 3] of sum(v_image * sky)
    void (*sky_backward)(const SkyView&, int threads, const float* v_image, float* gradient);
};

}  // namespace ff
