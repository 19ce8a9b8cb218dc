// Which texels of a cube map a pixel sees.
#pragma once
#include <algorithm>
#include <cmath>

#include "image.h"

namespace ff {
namespace FF_ISA {

struct Lookup {
    int index[4];
    float weight[4];
};

inline Lookup lookup(const SkyView& v, int px, int py) {
    const float a = (px + 0.5f - v.cx) / v.fx, b = (py + 0.5f - v.cy) / v.fy;
    float d[3], magnitude[3];
    for (int i = 0; i < 3; i++) d[i] = v.R[3 * i] * a + v.R[3 * i + 1] * b + v.R[3 * i + 2], magnitude[i] = std::fabs(d[i]);
    const int axis = magnitude[0] >= magnitude[1] && magnitude[0] >= magnitude[2] ? 0 : magnitude[1] >= magnitude[2] ? 1 : 2;
    const int face = 2 * axis + (d[axis] < 0), n = v.resolution;
    const float half = 0.5f * n, s = half / std::max(magnitude[axis], 1e-12f);
    const float u = std::min(std::max(d[(axis + 1) % 3] * s + half - 0.5f, 0.0f), (float)(n - 1));
    const float w = std::min(std::max(d[(axis + 2) % 3] * s + half - 0.5f, 0.0f), (float)(n - 1));
    const int u0 = std::min((int)u, std::max(n - 2, 0)), w0 = std::min((int)w, std::max(n - 2, 0)), step = n > 1;
    const float fu = u - u0, fw = w - w0;
    const int base = (face * n + w0) * n + u0;
    return {{base, base + step, base + step * n, base + step * (n + 1)},
            {(1 - fu) * (1 - fw), fu * (1 - fw), (1 - fu) * fw, fu * fw}};
}

}  // namespace FF_ISA
}  // namespace ff
