// α-entmax of one row, and its backward. With ε = α − 1 and a = z − max z the weights are
//
//     p = [1 + ε (a − t)]_+ ^ (1/ε),    t such that Σp = 1    (ε = 0: p = e^(a − t)).
//
// t is found by Newton's method on the norm: with F = Σp and N = Σ p^(1−ε), t += F/N · (1 − F^(−ε))/ε. From below it climbs
// to the root without passing it, and the root for any part of the row is a bound from below: the lane maxima of the pass
// that finds max z are a good part. Then only the scores above t − 1/ε, about the support, are iterated on.
#pragma once
#include "vector.h"

enum Kind { SOFTMAX, ENTMAX15, SPARSEMAX, GENERAL };

INLINE Kind kind_of(float eps) {
  return eps == 0.0f ? SOFTMAX : eps == 0.5f ? ENTMAX15 : eps == 1.0f ? SPARSEMAX : GENERAL;
}

// Calls f with the kind of ε as a template argument, so that each kind is compiled on its own.
#define FOR_KIND(eps, call)                          \
  switch (kind_of(eps)) {                            \
    case SOFTMAX: call(SOFTMAX); break;              \
    case ENTMAX15: call(ENTMAX15); break;            \
    case SPARSEMAX: call(SPARSEMAX); break;          \
    default: call(GENERAL);                          \
  }

// p as a function of a, for one ε and t.
template <Kind K>
struct Curve {
  V eps, inverse, shift;
  Curve(float e, float t) : eps(all(e)), inverse(all(1.0f / e)) {
    shift = all(K == SOFTMAX ? -t : K == ENTMAX15 ? 1.0f - 0.5f * t : K == SPARSEMAX ? 1.0f - t : -e * t);
  }
  struct Weight {
    V p, slope, bend;  // p^(1−ε) and p^(1−2ε) roughly: they only scale steps
  };
  INLINE_MEMBER Weight weigh(V a) const {
    if (K == SOFTMAX) {
      V p = exp(a + shift);
      return {p, p, p};
    }
    if (K == SPARSEMAX) {
      V p = larger(V{}, a + shift);
      return {p, p > 0.0f ? all(1.0f) : V{}, V{}};
    }
    if (K == ENTMAX15) {
      V u = larger(V{}, a * 0.5f + shift);
      return {u * u, u, V{}};
    }
    V y = a * eps + shift;
    V u = y + 1.0f;
    V p = exp2(log2_1p(y) * inverse);
    p = u <= 1e-30f ? V{} : p;  // NaN stays NaN
    V upside_down = rough_inverse(u);
    V slope = p > 0.0f ? p * upside_down : V{};
    return {p, slope, slope * upside_down};
  }
  INLINE_MEMBER V weight(V a) const { return weigh(a).p; }
  INLINE_MEMBER V slope(V a, V p) const {  // p^(1−ε) where p is known
    if (K != GENERAL) return weigh(a).slope;
    return p > 0.0f ? p * rough_inverse(a * eps + shift + 1.0f) : V{};
  }
};

// How far t is from the root, in units of F/N: (1 − F^(−ε))/ε, of d = F − 1.
INLINE float norm_step(float d, float eps) {
  float l;  // log F
  if (d > -0.5f && d < 0.5f) {
    const float y = d / (2.0f + d), y2 = y * y;
    l = 2.0f * y * (1.0f + y2 * (1 / 3.0f + y2 * (1 / 5.0f + y2 * (1 / 7.0f))));
  } else {
    l = log2(all(1.0f + d))[0] * 0.693147181f;
  }
  const float x = eps * l;
  if (x > 0.3f || x < -0.3f) return (1.0f - exp2(all(x * -1.44269504f))[0]) / eps;
  return l * (1.0f - x * (1 / 2.0f - x * (1 / 6.0f - x * (1 / 24.0f - x * (1 / 120.0f - x * (1 / 720.0f))))));
}

// Sums over some of a row at one t, F = Σp, N = Σ p^(1−ε), M = Σ p^(1−2ε).
struct Sums {
  float excess, N, M;  // excess: F − 1, without the digits that would cost

  float F() const { return 1.0f + excess; }
};

// Newton's step on F^ε, which is linear in t where all p are equal.
template <Kind K>
INLINE float newton_step(const Sums& s, float eps) {
  if (K == SPARSEMAX) return s.excess / s.N;
  if (K == ENTMAX15) {
    const float root = __builtin_sqrtf(s.F());
    return 2.0f * root * s.excess / ((root + 1.0f) * s.N);  // 2 (F − √F)/N
  }
  return s.F() / s.N * norm_step(s.excess, eps);
}

// Halley's, which may pass the root; for ε <= 1/2, where M is tame.
INLINE float halley_step(const Sums& s, float eps) {
  const float by = newton_step<GENERAL>(s, eps);
  const float bend = 0.5f * by * (1.0f - eps) * (s.M / s.N - s.N / s.F());
  return by / (1.0f - (bend < 0.5f ? bend : 0.5f));
}

// The sums over a[0..n) − top, `stride` vectors apart; stores p unless null.
template <Kind K, bool WIDE>
INLINE Sums sums_at(const float* a, int n, int stride, float top, float t, float eps, float* p) {
  const Curve<K> curve(eps, t);
  V total[2] = {}, norm[2] = {}, bend[2] = {};
  WideSum wide;
  int j = 0;
  for (; j + (stride + 1) * W <= n; j += 2 * stride * W)
    for (int half = 0; half < 2; half++) {
      auto weight = curve.weigh(load(a + j + half * stride * W) - top);
      if (p) store(p + j + half * stride * W, weight.p);
      if (WIDE) wide += weight.p;
      else total[half] += weight.p;
      norm[half] += weight.slope;
      if (K == GENERAL) bend[half] += weight.bend;
    }
  for (; j < n; j += stride * W) {
    auto weight = curve.weigh(load_part(a + j, n - j, -INF) - top);
    if (p) store_part(p + j, n - j, weight.p);
    if (WIDE) wide += weight.p;
    else total[0] += weight.p;
    norm[0] += weight.slope;
    if (K == GENERAL) bend[0] += weight.bend;
  }
  const float excess = WIDE ? (float)(wide.value() - 1.0) : sum(total[0] + total[1]) - 1.0f;
  return {excess, sum(norm[0] + norm[1]), K == GENERAL ? sum(bend[0] + bend[1]) : 0.0f};
}

// A bound from below for the lowest score with weight, t − 1/ε, where ε >= 1/M, M a power of 2: that of ε = 1/M, because
// the bound rises with ε ((ε x)^(1/ε) does, x = a − t + 1/ε), for a part of the row. There p = u^M needs no logarithm.
template <int M>
static float lowest_bound(const V* part, float top) {
  float t = 0.0f;
  for (int step = 0; step < 3; step++) {
    V F = V{}, N = V{};
    for (int k = 0; k < 4; k++) {
      V u = larger(V{}, (part[k] - top) * (1.0f / M) + (1.0f - t * (1.0f / M)));
      V slope = u > 0.0f ? all(1.0f) : V{}, power = u;  // u^(M−1) and u^M
      for (int m = 1; m < M; m *= 2) slope *= power, power *= power;
      F += power;
      N += slope;
    }
    const float total = sum(F);
    float root = total;
    for (int m = M; m > 1; m /= 2) root = __builtin_sqrtf(root);
    t += total / sum(N) * (float)M * (1.0f - 1.0f / root);
  }
  return t - (float)M;
}

struct Support {
  float top, t;  // t: a guess, most often from below; NaN where the row holds NaN or +inf
  int count;     // of scores packed; 0: the row has no allowed entry; −1: too many to be worth packing
};

// The scores of the row z[0..n) that can have weight, as a = z − top, packed into `values` (and their places into
// `index`), both with room for n + W, unless more than 3/4 of all are left.
template <Kind K>
static Support find_support(const float* z, int n, float eps, float* values, int* index) {
  V best[4] = {all(-INF), all(-INF), all(-INF), all(-INF)}, worst[2] = {all(INF), all(INF)};
  int j = 0;
  for (; j + 4 * W <= n; j += 4 * W)
    for (int k = 0; k < 4; k++) {
      V x = load(z + j + k * W);
      best[k] = larger(x, best[k]);
      worst[k & 1] = x < worst[k & 1] ? x : worst[k & 1];
    }
  const int sampled = j;
  V rest = all(-INF);
  for (; j < n; j += W) rest = larger(load_part(z + j, n - j, -INF), rest);
  best[0] = larger(best[0], rest);
  const float top = largest(larger(larger(best[0], best[1]), larger(best[2], best[3])));
  if (top == -INF) {
    for (j = 0; j < n; j++)
      if (z[j] != z[j]) return {0.0f, z[j], -1};
    return {top, 0.0f, 0};
  }
  if (K == SOFTMAX) return {top, 0.0f, -1};

  float lowest = -1.0f / eps, guess = lowest;  // t = 0
  if (sampled >= 8 * W && eps >= 1.0f / 16) {
    best[0] = larger(best[0], rest);  // the part holds the top
    const float from_part = eps == 1.0f   ? lowest_bound<1>(best, top)
                            : eps >= 0.5f ? lowest_bound<2>(best, top)
                            : eps >= 0.25f ? lowest_bound<4>(best, top)
                            : eps >= 0.125f ? lowest_bound<8>(best, top)
                                            : lowest_bound<16>(best, top);
    if (from_part > lowest) lowest = from_part;
    lowest += 1e-6f * lowest;
    guess = lowest;
    if (eps > 0.5f && eps < 1.0f) guess += (lowest_bound<1>(best, top) - lowest) * (2.0f * eps - 1.0f);
  }
  const float t = guess + 1.0f / eps;
  if (n - sampled < n / 4 && !not_below(all(lowest), worst[0] - top) && !not_below(all(lowest), worst[1] - top))
    return {top, t, -1};
  int count = 0;
  I place = lanes();
  for (j = 0; j < n; j += W) {
    V a = load_part(z + j, n - j, -INF) - top;
    unsigned bits = not_below(a, all(lowest));
    store_packed(values + count, bits, a);
    store_packed(index + count, bits, place);
    count += __builtin_popcount(bits);
    place += W;
  }
  return {top, t, count > n - n / 4 ? -1 : count};
}

// ε > 1/2, and 1.5-entmax, whose every evaluation is cheap. Where F bends at the edges of the support, a step lands on the
// root only from nearby.
template <Kind K>
static float weigh_bent(const float* a, int n, float top, float t, float eps, float* p, float* spare) {
  const float close = K == ENTMAX15 ? 3e-4f : 1e-6f;
  bool there = false;
  float by = 0.0f;
  for (int step = 0; step < 30; step++) {
    const Sums s = sums_at<K, true>(a, n, 1, top, t, eps, spare);
    by = newton_step<K>(s, eps);
    if (there || !(by > 6e-8f * t || by < -6e-8f * t)) break;  // NaN ends it too
    there = s.excess <= close && s.excess >= -close;
    t += by;
  }
  const Curve<K> curve(eps, t);
  for (int j = 0; j < n; j += W) {
    V weight = load_part(spare + j, n - j, 0.0f), own = load_part(a + j, n - j, -INF) - top;
    store_part(p + j, n - j, larger(V{}, weight - by * curve.slope(own, weight)));
  }
  return t + by;
}

// p(t + by) from p = p(t) and u = p^ε, for a small step: the series of (1 − ε by/u)^(1/ε), and anew near the edge of the
// support, where the step is not small beside u.
INLINE V shifted(V p, V u, float by, float eps) {
  const float c2 = (1 - eps) / 2, c3 = (1 - 2 * eps) / 3, c4 = (1 - 3 * eps) / 4, c5 = (1 - 4 * eps) / 5;
  V x = by * inverse_of(u);
  V moved = p * (1.0f - x * (1.0f - x * c2 * (1.0f - x * c3 * (1.0f - x * c4 * (1.0f - x * c5)))));
  const float edge = by < 0.0f ? -4.0f * by : 4.0f * by;
  V left = u - eps * by;
  moved = left <= 1e-30f ? V{} : moved;  // NaN stays NaN
  if (not_below(left, V{}) & not_below(all(edge), u)) {
    V again = exp2(log2(left) * (1.0f / eps));
    moved = left > 1e-30f ? (u < edge ? again : moved) : moved;
  }
  return moved;
}

// ε <= 1/2. An evaluation is a logarithm, an exponential and a division a score, so there are few: a quarter of a long row
// tells roughly where the root is, and the last steps are taken by a series on the weights at hand.
static inline float weigh_smooth(const float* a, int n, float top, float t, float eps, float* p, float* spare) {
  if (n >= 16 * W) {
    const Sums s = sums_at<GENERAL, false>(a, n, 4, top, t, eps, nullptr);
    const float part = (float)((n + W - 1) / W) / (float)(((n + W - 1) / W + 3) / 4);
    const float guess = t + halley_step({s.F() * part - 1.0f, s.N * part, s.M * part}, eps);
    const float bound = norm_step((float)n - 1.0f, eps);  // where the largest weight would be 1/n
    if (guess > t) t = guess < bound ? guess : bound;
  }
  const float small = eps <= 0.25f ? 0.1f : 4e-3f;
  float by = 0.0f, newton = 0.0f;
  bool passed = false;  // the root, by far, as where many scores lie just inside the edge; Newton's steps never do that
  for (int step = 0; step < 30; step++) {
    const Sums s = sums_at<GENERAL, false>(a, n, 1, top, t, eps, spare);
    if (!passed && step > 0 && s.excess < -0.999f) {  // nothing is left to step back by
      passed = true;
      t += newton - by;
      continue;
    }
    passed = passed || s.excess < -0.5f;
    newton = newton_step<GENERAL>(s, eps);
    by = passed ? newton : halley_step(s, eps);
    if (!(by > small || by < -small)) break;  // NaN ends it too
    t += by;
  }
  const V scale = all(eps), shift = all(1.0f - eps * t);
  WideSum total;
  V norm = V{};
  for (int j = 0; j < n; j += W) {
    V u = (load_part(a + j, n - j, -INF) - top) * scale + shift;
    V weight = shifted(load_part(spare + j, n - j, 0.0f), u, by, eps);
    total += weight;
    norm += weight > 0.0f ? weight * rough_inverse(u - eps * by) : V{};
  }
  by += (float)(total.value() - 1.0) / sum(norm);
  for (int j = 0; j < n; j += W) {
    V u = (load_part(a + j, n - j, -INF) - top) * scale + shift;
    store_part(p + j, n - j, shifted(load_part(spare + j, n - j, 0.0f), u, by, eps));
  }
  return t + by;
}

// Weights p of a[0..n) − top, which may be in the same place, with the root sought from `t`; returns the root. `spare` has
// room for n; it may be p where that is not a. The digits of t end before those of p, which shows where many p share the
// sum: the last step is taken in p itself, for a sum in float64.
template <Kind K>
static float weigh(const float* a, int n, float top, float t, float eps, float* p, float* spare) {
  if (K == SOFTMAX) {
    WideSum F;
    for (int j = 0; j < n; j += W) {
      V e = exp(load_part(a + j, n - j, -INF) - top);
      F += e;
      store_part(spare + j, n - j, e);
    }
    const double total = F.value();
    for (int j = 0; j < n; j += W) store_part(p + j, n - j, load_part(spare + j, n - j, 0.0f) * (float)(1.0 / total));
    return norm_step((float)(total - 1.0), 0.0f);
  }
  return K == GENERAL && eps <= 0.5f ? weigh_smooth(a, n, top, t, eps, p, spare)
                                     : weigh_bent<K>(a, n, top, t, eps, p, spare);
}

// Turns the packed scores of a row into its weights, in place, and drops those that are 0; returns how many are left.
template <Kind K>
static int pack_weights(float* values, int* index, float* spare, Support& found, float eps) {
  found.t = weigh<K>(values, found.count, 0.0f, found.t, eps, values, spare);
  int kept = 0;
  for (int j = 0; j < found.count; j += W) {
    V p = load_part(values + j, found.count - j, 0.0f), places = load(reinterpret_cast<float*>(index + j));
    unsigned bits = not_below(p, V{});
    store_packed(values + kept, bits, p);  // never ahead of what is still to be read
    store_packed(reinterpret_cast<float*>(index + kept), bits, places);
    kept += __builtin_popcount(bits);
  }
  return kept;
}

// (e^y − 1 − y)/y² for 0 <= y < 0.7
INLINE V psi_near(V y) {
  V s = y * (1.0f / 362880) + 1.0f / 40320;
  s = s * y + 1.0f / 5040;
  s = s * y + 1.0f / 720;
  s = s * y + 1.0f / 120;
  s = s * y + 1.0f / 24;
  s = s * y + 1.0f / 6;
  return s * y + 1.0f / 2;
}

// Backward of one row: from p and g = ∂loss/∂p[0..n), dz = u (g − ḡ) with u = p^(1−ε) and ḡ = Σug/Σu. Returns dα when
// asked, −Σ w (g − ḡ) with w = p L² ψ(εL), L = log p, ψ(x) = (e^(−x) − 1 + x)/x². dz is not g.
template <Kind K, bool WITH_ALPHA>
static float row_backward(const float* p, const float* g, float* dz, int n, float eps) {
  // All sums are of g − Σpg, so that a large mean of g costs no digits.
  V near_mean = V{};
  for (int j = 0; j < n; j += W) near_mean += load_part(p + j, n - j, 0.0f) * load_part(g + j, n - j, 0.0f);
  const V middle = all(sum(near_mean));
  const V square_inverse = all(1.0f / (eps * eps));
  V us = V{}, ug = V{}, ws = V{}, wg = V{};
  for (int j = 0; j < n; j += W) {
    V weight = load_part(p + j, n - j, 0.0f), c = load_part(g + j, n - j, 0.0f) - middle;
    V bits = WITH_ALPHA || K == GENERAL ? log2(larger(weight, all(1.2e-38f))) : V{};  // of p
    V u = weight;
    if (K == ENTMAX15) u = square_root(weight);
    if (K == SPARSEMAX) u = weight > 0.0f ? all(1.0f) : V{};
    // The smaller exponent: a logarithm of −100 has few digits behind the point.
    if (K == GENERAL) u = eps < 0.5f ? weight * exp2(bits * -eps) : weight > 0.0f ? exp2(bits * (1.0f - eps)) : V{};
    us += u;
    ug += u * c;
    store_part(dz + j, n - j, u);
    if (WITH_ALPHA) {
      V natural = bits * 0.693147181f;
      V y = natural * -eps;
      V w = weight * natural * natural * psi_near(y);
      if (K != SOFTMAX) w = y < 0.7f ? w : (u - weight * (y + 1.0f)) * square_inverse;
      ws += w;
      wg += w * c;
    }
  }
  const float total = sum(us), mean = total > 0.0f ? sum(ug) / total : 0.0f;
  const V centre = middle + mean;
  for (int j = 0; j < n; j += W)
    store_part(dz + j, n - j, load_part(dz + j, n - j, 0.0f) * (load_part(g + j, n - j, 0.0f) - centre));
  return WITH_ALPHA ? mean * sum(ws) - sum(wg) : 0.0f;
}
