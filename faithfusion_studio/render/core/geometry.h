// EWA projection of sixteen Gaussians, shared by the forward and the backward pass.
// W = view rotation, t = mean in the camera, J = pinhole Jacobian at the clamped t, U = J W [2, 3], A = U R(quat) [2, 3];
// then Sigma2 = A diag(scale^2) A^T.
#pragma once
#include "frame.h"
#include "simd.h"

namespace ff {
namespace FF_ISA {

struct Geometry {
    F m[3], t[3], s[3];      // mean (world), mean (camera), scale
    F q[4], q_inverse_norm;  // normalised quaternion, wxyz
    F R[9];                  // body -> world
    F tx, ty, rz;            // clamped camera position, 1 / z
    M clamp_x, clamp_y;
    F U[6], A[6];
    F sxx, sxy, syy;         // without eps2d
};

FF_INLINE void camera_position(const Camera& cam, Geometry& g) {
    for (int r = 0; r < 3; r++)
        g.t[r] = fma(F(cam.R[3 * r]), g.m[0], fma(F(cam.R[3 * r + 1]), g.m[1], fma(F(cam.R[3 * r + 2]), g.m[2], F(cam.t[r]))));
}

FF_INLINE void rotation(const F q[4], F R[9]) {
    F w = q[0], x = q[1], y = q[2], z = q[3], two(2.0f), one(1.0f);
    R[0] = one - two * (y * y + z * z); R[1] = two * (x * y - w * z); R[2] = two * (x * z + w * y);
    R[3] = two * (x * y + w * z); R[4] = one - two * (x * x + z * z); R[5] = two * (y * z - w * x);
    R[6] = two * (x * z - w * y); R[7] = two * (y * z + w * x); R[8] = one - two * (x * x + y * y);
}

// m and t are set; the rest follows.
FF_INLINE void geometry(const Camera& cam, const Inputs& in, const int32_t* index, Geometry& g) {
    for (int k = 0; k < 3; k++) g.s[k] = load_indexed(in.scales + k, 3, index);
    for (int k = 0; k < 4; k++) g.q[k] = load_indexed(in.quats + k, 4, index);
    F norm2 = g.q[0] * g.q[0] + g.q[1] * g.q[1] + g.q[2] * g.q[2] + g.q[3] * g.q[3];
    g.q_inverse_norm = F(1.0f) / sqrt(max(norm2, F(1e-24f)));
    for (int k = 0; k < 4; k++) g.q[k] = g.q[k] * g.q_inverse_norm;
    rotation(g.q, g.R);
    F x = g.t[0], y = g.t[1], z = g.t[2];
    g.rz = F(1.0f) / z;
    float mx = 0.15f * cam.width / cam.fx, my = 0.15f * cam.height / cam.fy;
    F xn = x * g.rz, yn = y * g.rz;
    F lxp((cam.width - cam.cx) / cam.fx + mx), lxn(-(cam.cx / cam.fx + mx));
    F lyp((cam.height - cam.cy) / cam.fy + my), lyn(-(cam.cy / cam.fy + my));
    g.clamp_x = (xn < lxn) | (xn > lxp);
    g.clamp_y = (yn < lyn) | (yn > lyp);
    g.tx = z * clamp(xn, lxn, lxp);
    g.ty = z * clamp(yn, lyn, lyp);
    F j00 = F(cam.fx) * g.rz, j11 = F(cam.fy) * g.rz;
    F j02 = -j00 * g.tx * g.rz, j12 = -j11 * g.ty * g.rz;
    for (int k = 0; k < 3; k++) {
        g.U[k] = fma(j00, F(cam.R[k]), j02 * F(cam.R[6 + k]));
        g.U[3 + k] = fma(j11, F(cam.R[3 + k]), j12 * F(cam.R[6 + k]));
    }
    g.sxx = g.sxy = g.syy = F(0.0f);
    for (int k = 0; k < 3; k++) {
        g.A[k] = g.U[0] * g.R[k] + g.U[1] * g.R[3 + k] + g.U[2] * g.R[6 + k];
        g.A[3 + k] = g.U[3] * g.R[k] + g.U[4] * g.R[3 + k] + g.U[5] * g.R[6 + k];
        F u = g.A[k] * g.s[k], v = g.A[3 + k] * g.s[k];
        g.sxx = fma(u, u, g.sxx);
        g.sxy = fma(u, v, g.sxy);
        g.syy = fma(v, v, g.syy);
    }
}

// a d - b c without cancellation when a fused multiply-add exists.
FF_INLINE F determinant(F a, F b, F c) {
    F bb = b * b;
    F error = fma(-b, b, bb);
    return fma(a, c, -bb) + error;
}

}  // namespace FF_ISA
}  // namespace ff
