// Vectors of W floats, written in the vector notation that GCC and Clang share, so that one text serves AVX-512, AVX2 and
// anything else; intrinsics stand only where that notation has no word. No part of the C++ library is linked.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define VECTOR_AVX512 1
constexpr int W = 16;
#elif defined(__AVX2__) && defined(__FMA__)
#define VECTOR_AVX2 1
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

#define INLINE_MEMBER inline __attribute__((always_inline))
#define INLINE static INLINE_MEMBER

typedef float V __attribute__((vector_size(4 * W), may_alias));
typedef int32_t I __attribute__((vector_size(4 * W), may_alias));
typedef float LooseV __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t LooseI __attribute__((vector_size(4 * W), aligned(4), may_alias));

constexpr float INF = __builtin_inff();

INLINE V load(const float* p) { return *reinterpret_cast<const LooseV*>(p); }
INLINE void store(float* p, V v) { *reinterpret_cast<LooseV*>(p) = v; }
INLINE void store(int32_t* p, I v) { *reinterpret_cast<LooseI*>(p) = v; }
INLINE V all(float x) { return V{} + x; }
INLINE V larger(V a, V b) { return a > b ? a : b; }  // b where either is NaN

INLINE I lanes() {
  I i;
  for (int l = 0; l < W; l++) i[l] = l;
  return i;
}

// The first `count` of W floats, `fill` in the other lanes.
INLINE V load_part(const float* p, int count, float fill) {
  if (count >= W) return load(p);
#if defined(VECTOR_AVX512)
  return (V)_mm512_mask_loadu_ps((__m512)all(fill), (__mmask16)((1u << count) - 1), p);
#else
  float lane[W];
  for (int l = 0; l < W; l++) lane[l] = l < count ? p[l] : fill;
  return load(lane);
#endif
}

INLINE void store_part(float* p, int count, V v) {
  if (count >= W) return store(p, v);
#if defined(VECTOR_AVX512)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), (__m512)v);
#else
  float lane[W];
  store(lane, v);
  for (int l = 0; l < count; l++) p[l] = lane[l];
#endif
}

INLINE float sum(V v) {
#if defined(VECTOR_AVX512)
  return _mm512_reduce_add_ps((__m512)v);
#elif defined(VECTOR_AVX2)
  __m128 half = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
#else
  float lane[W];
  store(lane, v);
  for (int width = W / 2; width; width /= 2)
    for (int l = 0; l < width; l++) lane[l] += lane[l + width];
  return lane[0];
#endif
}

INLINE float largest(V v) {
#if defined(VECTOR_AVX512)
  return _mm512_reduce_max_ps((__m512)v);
#elif defined(VECTOR_AVX2)
  __m128 half = _mm_max_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
#else
  float lane[W];
  store(lane, v);
  for (int width = W / 2; width; width /= 2)
    for (int l = 0; l < width; l++) lane[l] = lane[l] > lane[l + width] ? lane[l] : lane[l + width];
  return lane[0];
#endif
}

// A sum carried in float64: that of two thousand float32 terms, some large, some small, is off by up to 1e-5 in float32.
class WideSum {
 public:
  INLINE_MEMBER void operator+=(V v) {
#if defined(VECTOR_AVX512)
    low_ += _mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v));
    high_ += _mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1));
#elif defined(VECTOR_AVX2)
    low_ += _mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v));
    high_ += _mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1));
#else
    for (int l = 0; l < W / 2; l++) low_[l] += v[l], high_[l] += v[l + W / 2];
#endif
  }
  INLINE_MEMBER double value() const {
    Half both = low_ + high_;
    double all = 0.0;
    for (int l = 0; l < W / 2; l++) all += both[l];
    return all;
  }

 private:
  typedef double Half __attribute__((vector_size(4 * W)));
  Half low_ = {}, high_ = {};
};

// One bit per lane, set where a > b or either is NaN.
INLINE unsigned not_below(V a, V b) {
#if defined(VECTOR_AVX512)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NLE_UQ);
#elif defined(VECTOR_AVX2)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_NLE_UQ));
#else
  unsigned bits = 0;
  for (int l = 0; l < W; l++) bits |= (a[l] <= b[l] ? 0u : 1u) << l;
  return bits;
#endif
}

#if defined(VECTOR_AVX2)
// For every set of lanes, the order that moves its members to the front.
struct PackOrders {
  uint8_t order[256][8];
  constexpr PackOrders() : order() {
    for (int bits = 0; bits < 256; bits++)
      for (int l = 0, k = 0; l < 8; l++)
        if (bits >> l & 1) order[bits][k++] = (uint8_t)l;
  }
};
static constexpr PackOrders PACK;
#endif

// Stores the lanes named by `bits` one after another; may write W lanes in all, whatever the count.
INLINE void store_packed(float* p, unsigned bits, V v) {
#if defined(VECTOR_AVX512)
  _mm512_storeu_ps(p, _mm512_maskz_compress_ps((__mmask16)bits, (__m512)v));
#elif defined(VECTOR_AVX2)
  __m256i order = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)PACK.order[bits]));
  _mm256_storeu_ps(p, _mm256_permutevar8x32_ps((__m256)v, order));
#else
  for (int l = 0; l < W; l++)
    if (bits >> l & 1) *p++ = v[l];
#endif
}

INLINE void store_packed(int32_t* p, unsigned bits, I v) { store_packed(reinterpret_cast<float*>(p), bits, (V)v); }

INLINE V nearest(V x) {
#if defined(VECTOR_AVX512)
  return (V)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(VECTOR_AVX2)
  return (V)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const V shift = all(12582912.0f);  // 1.5 · 2^23: the sum has no room for a fraction
  return (x + shift) - shift;
#endif
}

INLINE V square_root(V x) {
#if defined(VECTOR_AVX512)
  return (V)_mm512_sqrt_ps((__m512)x);
#elif defined(VECTOR_AVX2)
  return (V)_mm256_sqrt_ps((__m256)x);
#else
  for (int l = 0; l < W; l++) x[l] = __builtin_sqrtf(x[l]);
  return x;
#endif
}

INLINE V rough_inverse(V x) {  // 1/x to 11 bits or better
#if defined(VECTOR_AVX512)
  return (V)_mm512_rcp14_ps((__m512)x);
#elif defined(VECTOR_AVX2)
  return (V)_mm256_rcp_ps((__m256)x);
#else
  return 1.0f / x;
#endif
}

INLINE V inverse_of(V x) {  // 1/x to an ulp or two
#if defined(VECTOR_AVX512) || defined(VECTOR_AVX2)
  V rough = rough_inverse(x);
  return rough * (2.0f - x * rough);
#else
  return 1.0f / x;
#endif
}

// 2^(n + f) for whole n and |f| <= 1/2; the polynomial is the minimax fit of (2^f − 1)/f.
INLINE V power_of_two(V n, V f) {
  V q = all(1.53533619e-4f);
  q = q * f + 1.33988750e-3f;
  q = q * f + 9.61843692e-3f;
  q = q * f + 5.55033237e-2f;
  q = q * f + 2.40226477e-1f;
  q = q * f + 6.93147182e-1f;
  q = q * f + 1.0f;
  return (V)((I)q + (__builtin_convertvector(n, I) << 23));
}

// 2^x to 1 ulp for x <= 127, 0 below 2^-126.
INLINE V exp2(V x) {
  V n = nearest(x < -126.0f ? all(-126.0f) : x);
  return x < -126.0f ? V{} : power_of_two(n, x - n);
}

// e^x to 1 ulp for x <= 88, 0 below e^-87. log 2 is split so that n times its first part is exact.
INLINE V exp(V x) {
  V n = nearest((x < -87.0f ? all(-87.0f) : x) * 1.44269504f);
  V rest = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  return x < -87.0f ? V{} : power_of_two(n, rest * 1.44269504f);
}

// log2(2^k (1 + f)) for 1 + f within [√½, √2], with small relative error around f = 0 as well.
INLINE V log2_of(I k, V f) {
  // Minimax fit of (log(1 + f) − f + f²/2) / f³, in pairs: a short chain, because rows with few scores wait for it.
  V f2 = f * f, f4 = f2 * f2;
  V low = (f * -2.50008196e-1f + 3.33333313e-1f) + (f * -1.66233569e-1f + 2.00012267e-1f) * f2;
  V high = (f * -1.31601840e-1f + 1.42017573e-1f) + (f * -7.63449743e-2f + 1.27615824e-1f) * f2;
  V log_1p = f + f2 * (f * (low + high * f4) - 0.5f);
  return log_1p * 1.44269504f + __builtin_convertvector(k, V);
}

// The exponent that leaves x / 2^k within [√½, √2]; x positive and normal.
INLINE I exponent(V x) { return ((I)x - 0x3f3504f3) >> 23; }

INLINE V two_to_minus(I k) { return (V)(0x3f800000 - (k << 23)); }

INLINE V log2(V x) {
  I k = exponent(x);
  return log2_of(k, x * two_to_minus(k) - 1.0f);
}

// log2(1 + y): f comes from y itself, so that what 1 + y rounds away is not lost.
INLINE V log2_1p(V y) {
  I k = exponent(y + 1.0f);
  V scale = two_to_minus(k);
  return log2_of(k, y * scale + (scale - 1.0f));
}
