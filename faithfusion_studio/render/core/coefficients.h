// What one Gaussian contributes to G of a pixel, as polynomials in h (scaled by log2(e) / 2, as the blend has it).
//
// Block form, 48 floats: quartic Q (15: 1, x, y, xx, xy, yy, xxx, xxy, xyy, yyy, xxxx, xxxy, xxyy, xyyy, yyyy), then for
// each channel the quadratic L (6: 1, x, y, xx, xy, yy), then the constant M (6: rr rg rb gg gb bb), nine unused:
// G_kl += w^2 (gamma_k gamma_l Q + gamma_k L_l + gamma_l L_k + M_kl).
// Trace of the diagonal form, 32 floats: Q without its linear terms (13; the opacity is independent of the shape), the
// constant (1), for each channel 2 L without its constant (5: x, y, xx, xy, yy), three unused:
// tr G += w^2 (|gamma|^2 Q + sum_k gamma_k 2L_k + constant).
#pragma once

namespace ff {

// Sums over pixels for the Fisher information, 34 of 48 floats: 15 moments of w^2 |gamma|^2 in the order of Q, 6 of
// w^2 gamma for each channel in the order of L, and w^2.
constexpr int kMoments = 34, kMomentRow = 48;

constexpr int kBlockRow = 48, kTraceRow = 32;
constexpr int kLinear = 15, kConstant = 33;            // block form: first quadratic, first constant
constexpr int kTraceConstant = 13, kTraceLinear = 14;  // trace: the constant, first quadratic

}  // namespace ff
