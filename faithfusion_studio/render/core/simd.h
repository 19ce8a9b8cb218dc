// Sixteen float lanes (one 4x4 pixel block, or sixteen Gaussians) on whatever the target offers.
// Each kernel file is compiled once per instruction set with FF_ISA naming the inner namespace.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif
#define FF_INLINE inline __attribute__((always_inline))

namespace ff {
namespace FF_ISA {

#if defined(__AVX512F__)
struct F {
    __m512 v;
    FF_INLINE F() {}
    FF_INLINE F(float x) : v(_mm512_set1_ps(x)) {}
    FF_INLINE explicit F(__m512 x) : v(x) {}
};
struct M {
    __mmask16 m;
};
FF_INLINE F load(const float* p) { return F(_mm512_loadu_ps(p)); }
FF_INLINE void store(float* p, F a) { _mm512_storeu_ps(p, a.v); }
FF_INLINE F operator+(F a, F b) { return F(_mm512_add_ps(a.v, b.v)); }
FF_INLINE F operator-(F a, F b) { return F(_mm512_sub_ps(a.v, b.v)); }
FF_INLINE F operator*(F a, F b) { return F(_mm512_mul_ps(a.v, b.v)); }
FF_INLINE F operator/(F a, F b) { return F(_mm512_div_ps(a.v, b.v)); }
FF_INLINE F operator-(F a) { return F(_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))); }
FF_INLINE F fma(F a, F b, F c) { return F(_mm512_fmadd_ps(a.v, b.v, c.v)); }
FF_INLINE F min(F a, F b) { return F(_mm512_min_ps(a.v, b.v)); }
FF_INLINE F max(F a, F b) { return F(_mm512_max_ps(a.v, b.v)); }
FF_INLINE F sqrt(F a) { return F(_mm512_sqrt_ps(a.v)); }
FF_INLINE F abs(F a) { return F(_mm512_abs_ps(a.v)); }
FF_INLINE F ceil(F a) { return F(_mm512_roundscale_ps(a.v, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC)); }
FF_INLINE M operator<(F a, F b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
FF_INLINE M operator<=(F a, F b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
FF_INLINE M operator&(M a, M b) { return {(__mmask16)(a.m & b.m)}; }
FF_INLINE M operator|(M a, M b) { return {(__mmask16)(a.m | b.m)}; }
FF_INLINE M andnot(M a, M b) { return {(__mmask16)(a.m & ~b.m)}; }  // a and not b
FF_INLINE bool any(M a) { return a.m != 0; }
FF_INLINE uint32_t bits(M a) { return a.m; }
FF_INLINE M from_bits(uint32_t b) { return {(__mmask16)b}; }
FF_INLINE F select(M m, F a, F b) { return F(_mm512_mask_blend_ps(m.m, b.v, a.v)); }
FF_INLINE F keep(M m, F a) { return F(_mm512_maskz_mov_ps(m.m, a.v)); }
FF_INLINE float sum(F a) { return _mm512_reduce_add_ps(a.v); }
FF_INLINE F exp2_scale(F mantissa, F whole) { return F(_mm512_scalef_ps(mantissa.v, whole.v)); }
FF_INLINE F nearest(F a) { return F(_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)); }
FF_INLINE void split_exponent(F x, F& exponent, F& mantissa) {
    const __m512i offset = _mm512_set1_epi32(0x3f3504f3);   // sqrt(1/2)
    __m512i u = _mm512_castps_si512(x.v), e = _mm512_srai_epi32(_mm512_sub_epi32(u, offset), 23);
    exponent = F(_mm512_cvtepi32_ps(e));
    mantissa = F(_mm512_castsi512_ps(_mm512_sub_epi32(u, _mm512_slli_epi32(e, 23))));
}
#else
#if defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int kParts = 16 / kLanes;
typedef float vf __attribute__((vector_size(4 * kLanes)));
typedef int32_t vi __attribute__((vector_size(4 * kLanes)));
#define FF_EACH for (int k = 0; k < kParts; k++)
struct F {
    vf v[kParts];
    FF_INLINE F() {}
    FF_INLINE F(float x) { FF_EACH v[k] = x - vf{}; }
};
struct M {
    vi v[kParts];
};
FF_INLINE F load(const float* p) { F r; FF_EACH std::memcpy(&r.v[k], p + k * kLanes, sizeof(vf)); return r; }
FF_INLINE void store(float* p, F a) { FF_EACH std::memcpy(p + k * kLanes, &a.v[k], sizeof(vf)); }
FF_INLINE F operator+(F a, F b) { F r; FF_EACH r.v[k] = a.v[k] + b.v[k]; return r; }
FF_INLINE F operator-(F a, F b) { F r; FF_EACH r.v[k] = a.v[k] - b.v[k]; return r; }
FF_INLINE F operator*(F a, F b) { F r; FF_EACH r.v[k] = a.v[k] * b.v[k]; return r; }
FF_INLINE F operator/(F a, F b) { F r; FF_EACH r.v[k] = a.v[k] / b.v[k]; return r; }
FF_INLINE F operator-(F a) { F r; FF_EACH r.v[k] = -a.v[k]; return r; }
FF_INLINE M operator<(F a, F b) { M r; FF_EACH r.v[k] = a.v[k] < b.v[k]; return r; }
FF_INLINE M operator<=(F a, F b) { M r; FF_EACH r.v[k] = a.v[k] <= b.v[k]; return r; }
FF_INLINE M operator&(M a, M b) { M r; FF_EACH r.v[k] = a.v[k] & b.v[k]; return r; }
FF_INLINE M operator|(M a, M b) { M r; FF_EACH r.v[k] = a.v[k] | b.v[k]; return r; }
FF_INLINE M andnot(M a, M b) { M r; FF_EACH r.v[k] = a.v[k] & ~b.v[k]; return r; }
FF_INLINE F select(M m, F a, F b) { F r; FF_EACH r.v[k] = m.v[k] ? a.v[k] : b.v[k]; return r; }
FF_INLINE F keep(M m, F a) { F r; FF_EACH r.v[k] = (vf)(m.v[k] & (vi)a.v[k]); return r; }
FF_INLINE F abs(F a) { F r; FF_EACH r.v[k] = (vf)((vi)a.v[k] & 0x7fffffff); return r; }
FF_INLINE F exp2_scale(F mantissa, F whole) {
    F r;
    FF_EACH r.v[k] = (vf)((vi)mantissa.v[k] + (__builtin_convertvector(whole.v[k], vi) << 23));
    return r;
}
FF_INLINE void split_exponent(F x, F& exponent, F& mantissa) {
    FF_EACH {
        vi e = ((vi)x.v[k] - 0x3f3504f3) >> 23;   // offset: sqrt(1/2)
        exponent.v[k] = __builtin_convertvector(e, vf);
        mantissa.v[k] = (vf)((vi)x.v[k] - (e << 23));
    }
}
#if defined(__AVX2__)
FF_INLINE F fma(F a, F b, F c) { F r; FF_EACH r.v[k] = _mm256_fmadd_ps(a.v[k], b.v[k], c.v[k]); return r; }
FF_INLINE F min(F a, F b) { F r; FF_EACH r.v[k] = _mm256_min_ps(a.v[k], b.v[k]); return r; }
FF_INLINE F max(F a, F b) { F r; FF_EACH r.v[k] = _mm256_max_ps(a.v[k], b.v[k]); return r; }
FF_INLINE F sqrt(F a) { F r; FF_EACH r.v[k] = _mm256_sqrt_ps(a.v[k]); return r; }
FF_INLINE F ceil(F a) { F r; FF_EACH r.v[k] = _mm256_ceil_ps(a.v[k]); return r; }
FF_INLINE F nearest(F a) {
    F r;
    FF_EACH r.v[k] = _mm256_round_ps(a.v[k], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return r;
}
FF_INLINE uint32_t bits(M a) {
    return (uint32_t)_mm256_movemask_ps((vf)a.v[0]) | (uint32_t)_mm256_movemask_ps((vf)a.v[1]) << 8;
}
FF_INLINE bool any(M a) { return !_mm256_testz_si256((__m256i)(a.v[0] | a.v[1]), (__m256i)(a.v[0] | a.v[1])); }
#else
FF_INLINE F fma(F a, F b, F c) { return a * b + c; }
FF_INLINE F min(F a, F b) { return select(a < b, a, b); }
FF_INLINE F max(F a, F b) { return select(b < a, a, b); }
FF_INLINE F sqrt(F a) { F r; FF_EACH for (int l = 0; l < kLanes; l++) r.v[k][l] = std::sqrt(a.v[k][l]); return r; }
FF_INLINE F ceil(F a) { F r; FF_EACH for (int l = 0; l < kLanes; l++) r.v[k][l] = std::ceil(a.v[k][l]); return r; }
FF_INLINE F nearest(F a) {  // valid for |a| < 2^22, which is all the exponential needs
    const F magic(12582912.0f);
    return (a + magic) - magic;
}
#if defined(__SSE2__)
FF_INLINE uint32_t bits(M a) {
    uint32_t r = 0;
    FF_EACH r |= (uint32_t)__builtin_ia32_movmskps((vf)a.v[k]) << (k * kLanes);
    return r;
}
#else
FF_INLINE uint32_t bits(M a) {
    uint32_t r = 0;
    FF_EACH for (int l = 0; l < kLanes; l++) r |= (uint32_t)(a.v[k][l] & 1) << (k * kLanes + l);
    return r;
}
#endif
FF_INLINE bool any(M a) {
    typedef int64_t vl __attribute__((vector_size(16)));
    vl o = (vl)(a.v[0] | a.v[1] | a.v[2] | a.v[3]);
    return (o[0] | o[1]) != 0;
}
#endif
FF_INLINE M from_bits(uint32_t b) {
    M r;
    FF_EACH for (int l = 0; l < kLanes; l++) r.v[k][l] = -(int32_t)((b >> (k * kLanes + l)) & 1);
    return r;
}
FF_INLINE float sum(F a) {
    vf t = a.v[0];
    for (int k = 1; k < kParts; k++) t += a.v[k];
    float r = 0;
    for (int l = 0; l < kLanes; l++) r += t[l];
    return r;
}
#endif

FF_INLINE F& operator+=(F& a, F b) { return a = a + b; }
FF_INLINE F& operator-=(F& a, F b) { return a = a - b; }
FF_INLINE M operator>(F a, F b) { return b < a; }
FF_INLINE M operator>=(F a, F b) { return b <= a; }
FF_INLINE F floor(F a) { return -ceil(-a); }
FF_INLINE F clamp(F x, F lo, F hi) { return min(max(x, lo), hi); }

// log2(x) for positive normal x; absolute error below 1e-7 near 1, relative elsewhere.
FF_INLINE F log2(F x) {
    F exponent, m;
    split_exponent(x, exponent, m);   // m in [sqrt(1/2), sqrt(2))
    // 2 atanh(f) / ln 2 with f = (m - 1) / (m + 1), |f| < 0.172
    F f = (m - F(1.0f)) / (m + F(1.0f)), z = f * f;
    F p = fma(z, F(0.32059890f), F(0.41219858f));
    p = fma(p, z, F(0.57707802f));
    p = fma(p, z, F(0.96179669f));
    p = fma(p, z, F(2.8853900818f));
    return fma(f, p, exponent);
}

// 2^x for |x| < 126 by a degree-5 polynomial on [-1/2, 1/2]; relative error below 2e-7.
FF_INLINE F exp2(F x) {
    F whole = nearest(x);
    F f = x - whole;
    F p = fma(f, F(1.339887440e-3f), F(9.618437357e-3f));
    p = fma(p, f, F(5.550332549e-2f));
    p = fma(p, f, F(2.402264791e-1f));
    p = fma(p, f, F(6.931472057e-1f));
    p = fma(p, f, F(1.0f));
    return exp2_scale(p, whole);
}

// 1 / x for normal x, within two roundings; faster than a division where the machine estimates reciprocals well.
#if defined(__AVX512F__)
FF_INLINE F reciprocal(F x) {
    F r(_mm512_rcp14_ps(x.v));
    return fma(fma(-x, r, F(1.0f)), r, r);
}
#else
FF_INLINE F reciprocal(F x) { return F(1.0f) / x; }
#endif

// Adds the lane sums of v[0..15] to out[0..15]: a transpose and an addition in one.
#if defined(__AVX512F__)
FF_INLINE void add_sums16(const F* v, float* out) {
    __m512 q[4];
    for (int i = 0; i < 4; i++) {   // per 128-bit lane: v[4i], v[4i+1], v[4i+2], v[4i+3]
        __m512 a = v[4 * i].v, b = v[4 * i + 1].v, c = v[4 * i + 2].v, d = v[4 * i + 3].v;
        __m512d ab = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
        __m512d cd = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
        q[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
    }
    __m512 x = _mm512_add_ps(_mm512_shuffle_f32x4(q[0], q[1], 0x44), _mm512_shuffle_f32x4(q[0], q[1], 0xee));
    __m512 y = _mm512_add_ps(_mm512_shuffle_f32x4(q[2], q[3], 0x44), _mm512_shuffle_f32x4(q[2], q[3], 0xee));
    __m512 r = _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
    _mm512_storeu_ps(out, _mm512_add_ps(_mm512_loadu_ps(out), r));
}
#elif defined(__AVX2__)
FF_INLINE void add_sums16(const F* v, float* out) {
    for (int half = 0; half < 2; half++) {
        __m256 q[2];
        for (int i = 0; i < 2; i++) {
            const F* p = v + 8 * half + 4 * i;
            __m256 a = p[0].v[0] + p[0].v[1], b = p[1].v[0] + p[1].v[1], c = p[2].v[0] + p[2].v[1], d = p[3].v[0] + p[3].v[1];
            q[i] = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        }
        __m256 r = _mm256_add_ps(_mm256_permute2f128_ps(q[0], q[1], 0x20), _mm256_permute2f128_ps(q[0], q[1], 0x31));
        _mm256_storeu_ps(out + 8 * half, _mm256_add_ps(_mm256_loadu_ps(out + 8 * half), r));
    }
}
#else
FF_INLINE void add_sums16(const F* v, float* out) {
    for (int i = 0; i < 16; i++) out[i] += sum(v[i]);
}
#endif

// Transposes sixteen vectors of sixteen lanes in place: lane j of v[i] becomes lane i of v[j].
#if defined(__AVX512F__)
FF_INLINE void transpose16(F* v) {
    __m512 q[16], h[16];
    for (int i = 0; i < 4; i++) {   // 4x4 transposes inside the 128-bit lanes: h[4i + c] holds column c (and c + 4, ...) of rows 4i..
        __m512 a = v[4 * i].v, b = v[4 * i + 1].v, c = v[4 * i + 2].v, d = v[4 * i + 3].v;
        __m512d ab0 = _mm512_castps_pd(_mm512_unpacklo_ps(a, b)), ab1 = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
        __m512d cd0 = _mm512_castps_pd(_mm512_unpacklo_ps(c, d)), cd1 = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
        h[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab0, cd0));
        h[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab0, cd0));
        h[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab1, cd1));
        h[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab1, cd1));
    }
    for (int c = 0; c < 4; c++) {   // then of the 128-bit lanes themselves
        q[0] = _mm512_shuffle_f32x4(h[c], h[4 + c], 0x88);
        q[1] = _mm512_shuffle_f32x4(h[c], h[4 + c], 0xdd);
        q[2] = _mm512_shuffle_f32x4(h[8 + c], h[12 + c], 0x88);
        q[3] = _mm512_shuffle_f32x4(h[8 + c], h[12 + c], 0xdd);
        v[c].v = _mm512_shuffle_f32x4(q[0], q[2], 0x88);
        v[8 + c].v = _mm512_shuffle_f32x4(q[0], q[2], 0xdd);
        v[4 + c].v = _mm512_shuffle_f32x4(q[1], q[3], 0x88);
        v[12 + c].v = _mm512_shuffle_f32x4(q[1], q[3], 0xdd);
    }
}
#else
FF_INLINE void transpose16(F* v) {
    alignas(64) float t[16][16], u[16][16];
    for (int i = 0; i < 16; i++) store(t[i], v[i]);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) u[j][i] = t[i][j];
    for (int i = 0; i < 16; i++) v[i] = load(u[i]);
}
#endif

// A store of a whole, aligned cache line that is not read again soon: it need not be fetched first.
FF_INLINE void stream(float* p, F a) {
#if defined(__AVX512F__)
    _mm512_stream_ps(p, a.v);
#elif defined(__AVX2__)
    for (int k = 0; k < 2; k++) _mm256_stream_ps(p + 8 * k, a.v[k]);
#else
    store(p, a);
#endif
}

// The first n < 16 floats from p, zero in the other lanes.
#if defined(__AVX512F__)
FF_INLINE F load_first(const float* p, int n) { return F(_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p)); }
#else
FF_INLINE F load_first(const float* p, int n) {
    alignas(64) float t[16] = {};
    for (int k = 0; k < n; k++) t[k] = p[k];
    return load(t);
}
#endif

// base[index[lane] * width + k] into lane `lane` of out[k], for k < used; sixteen columns at a time.
FF_INLINE void load_rows(const float* base, int64_t width, const int32_t* index, F* out, int used) {
    for (int k = 0; k < used; k += 16) {
        const int n = used - k < 16 ? used - k : 16;
        F t[16];
        if (n == 16)
            for (int l = 0; l < 16; l++) t[l] = load(base + index[l] * width + k);
        else
            for (int l = 0; l < 16; l++) t[l] = load_first(base + index[l] * width + k, n);
        transpose16(t);
        for (int j = 0; j < n; j++) out[k + j] = t[j];
    }
}

#if defined(__AVX512F__)
FF_INLINE void store_first(float* p, F a, int n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), a.v); }
#else
FF_INLINE void store_first(float* p, F a, int n) {
    alignas(64) float t[16];
    store(t, a);
    for (int k = 0; k < n; k++) p[k] = t[k];
}
#endif

// Adds lane l of columns[0..used) to the row base + index[l] * width, for l < count; rows are taken in lane order.
FF_INLINE void add_rows(const F* columns, int used, float* base, int64_t width, const int32_t* index, int count) {
    for (int k = 0; k < used; k += 16) {
        const int n = used - k < 16 ? used - k : 16;
        F t[16];
        for (int j = 0; j < n; j++) t[j] = columns[k + j];
        for (int j = n; j < 16; j++) t[j] = F(0.0f);
        transpose16(t);
        for (int l = 0; l < count; l++) {
            float* row = base + index[l] * width + k;
            if (n == 16) store(row, load(row) + t[l]);
            else store_first(row, load_first(row, n) + t[l], n);
        }
    }
}

// Lanes 0..count-1 of p[lane * stride]; the rest repeats the last one.
FF_INLINE F load_strided(const float* p, int64_t stride, int count) {
    alignas(64) float t[16];
    for (int l = 0; l < 16; l++) t[l] = p[(l < count ? l : count - 1) * stride];
    return load(t);
}

// p[index[lane] * stride].
FF_INLINE F load_indexed(const float* p, int64_t stride, const int32_t* index) {
    alignas(64) float t[16];
    for (int l = 0; l < 16; l++) t[l] = p[index[l] * stride];
    return load(t);
}

}  // namespace FF_ISA
}  // namespace ff
