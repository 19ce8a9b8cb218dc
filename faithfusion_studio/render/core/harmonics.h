// Real spherical harmonics up to degree 3, in gsplat's order and signs, with derivatives by direction.
#pragma once
#include "simd.h"

namespace ff {
namespace FF_ISA {

constexpr float kSh0 = 0.2820947917738781f, kSh1 = 0.4886025119029199f;

FF_INLINE void sh_basis(int degree, F x, F y, F z, F* b) {
    b[0] = F(kSh0);
    if (degree < 1) return;
    b[1] = F(-kSh1) * y; b[2] = F(kSh1) * z; b[3] = F(-kSh1) * x;
    if (degree < 2) return;
    F xx = x * x, yy = y * y, zz = z * z;
    b[4] = F(1.0925484305920792f) * x * y;
    b[5] = F(-1.0925484305920792f) * y * z;
    b[6] = F(0.31539156525252005f) * (F(2.0f) * zz - xx - yy);
    b[7] = F(-1.0925484305920792f) * x * z;
    b[8] = F(0.5462742152960396f) * (xx - yy);
    if (degree < 3) return;
    b[9] = F(-0.5900435899266435f) * y * (F(3.0f) * xx - yy);
    b[10] = F(2.890611442640554f) * x * y * z;
    b[11] = F(-0.4570457994644658f) * y * (F(4.0f) * zz - xx - yy);
    b[12] = F(0.3731763325901154f) * z * (F(2.0f) * zz - F(3.0f) * xx - F(3.0f) * yy);
    b[13] = F(-0.4570457994644658f) * x * (F(4.0f) * zz - xx - yy);
    b[14] = F(1.445305721320277f) * z * (xx - yy);
    b[15] = F(-0.5900435899266435f) * x * (xx - F(3.0f) * yy);
}

// Adds sum_k v[k] d b[k] / d (x, y, z) to g; the polynomials above are taken as functions of all three.
FF_INLINE void sh_basis_backward(int degree, F x, F y, F z, const F* v, F* g) {
    if (degree < 1) return;
    g[1] -= F(kSh1) * v[1]; g[2] += F(kSh1) * v[2]; g[0] -= F(kSh1) * v[3];
    if (degree < 2) return;
    F xx = x * x, yy = y * y, zz = z * z, a(1.0925484305920792f), c(0.6307831305050401f), d(1.0925484305920792f);
    g[0] += a * (y * v[4] - z * v[7]) - c * x * v[6] + d * x * v[8];
    g[1] += a * (x * v[4] - z * v[5]) - c * y * v[6] - d * y * v[8];
    g[2] += -a * (y * v[5] + x * v[7]) + F(2.0f) * c * z * v[6];
    if (degree < 3) return;
    F e(0.5900435899266435f), h(2.890611442640554f), i(0.4570457994644658f), j(0.3731763325901154f), k(1.445305721320277f);
    F two(2.0f), three(3.0f), four(4.0f), six(6.0f), eight(8.0f);
    g[0] += -e * six * x * y * v[9] + h * y * z * v[10] + i * two * x * y * v[11] - j * six * x * z * v[12]
        - i * (four * zz - three * xx - yy) * v[13] + k * two * x * z * v[14] - e * three * (xx - yy) * v[15];
    g[1] += -e * three * (xx - yy) * v[9] + h * x * z * v[10] - i * (four * zz - xx - three * yy) * v[11]
        - j * six * y * z * v[12] + i * two * x * y * v[13] - k * two * y * z * v[14] + e * six * x * y * v[15];
    g[2] += h * x * y * v[10] - i * eight * y * z * v[11] + j * (six * zz - three * xx - three * yy) * v[12]
        - i * eight * x * z * v[13] + k * (xx - yy) * v[14];
}

}  // namespace FF_ISA
}  // namespace ff
