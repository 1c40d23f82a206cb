// α-entmax of W rows side by side, for 0 < ε < 1/2. What is one number a row, t and the sums over the row, is one lane of a
// vector here: the steps of a search are a chain of divisions and logarithms that a narrow row would wait for.
#pragma once
#include "entmax_row.h"

struct Group {
  int rows;            // at most W
  float* scores[W];    // of row r: z, then a = z − max z, which stay exact however large z is; all, or packed
  int* places[W];      // room for the places of packed ones
  int width;           // of a row, a multiple of W, −∞ where there is no key
  int counts[W];       // of packed ones, or −1 where the row is not packed; 0 also where no key is allowed
  float top[W], t[W];  // of each row

  int length(int r) const { return counts[r] < 0 ? width : counts[r]; }
};

// Newton's step on F^ε with Halley's correction, as `halley_step`.
INLINE V halley_steps(V excess, V N, V M, float eps) {
  const V F = excess + 1.0f, x = log2_1p(excess) * (0.693147181f * eps);
  const V near = 1.0f - x * (1 / 2.0f - x * (1 / 6.0f - x * (1 / 24.0f - x * (1 / 120.0f - x * (1 / 720.0f)))));
  const V size = x < 0.0f ? -x : x;
  V step = size > 0.3f ? 1.0f - exp2(x * -1.44269504f) : x * near;
  step *= F / N * (1.0f / eps);
  const V bend = 0.5f * (1.0f - eps) * step * (M / N - N / F);
  return step / (1.0f - (bend < 0.5f ? bend : all(0.5f)));
}

// The sums over a row with u^(1/ε) read off its bits: those of a float32 are about 2^23 (127 + log2 u). F is right to some
// per cent.
INLINE void rough_sums(const float* a, int n, int stride, float t, float eps, float* sums) {
  const float power = 1.0f / eps, bits = 8388608.0f;
  // What the straight line between powers of two misses, in the mean: of log2 0.0573, of 2^x 0.0563.
  const V scale = all(eps), shift = all(1.0f - eps * t), rise = all(power);
  const V base = all(bits * ((1.0f - power) * 127.0f + power * 0.0573f - 0.0563f));
  V F = V{}, N = V{}, M = V{};
  for (int j = 0; j < n; j += stride * W) {
    V u = larger(load_part(a + j, n - j, -INF) * scale + shift, all(1e-30f));
    V p = (V)__builtin_convertvector(larger(__builtin_convertvector((I)u, V) * rise + base, V{}), I);
    V upside_down = rough_inverse(u), slope = p * upside_down;
    F += p, N += slope, M += slope * upside_down;
  }
  sums[0] = sum(F), sums[W] = sum(N), sums[2 * W] = sum(M);
}

// The same, F right to about 0.1 %: at the end of a step from there, few rows need another.
INLINE void close_sums(const float* a, int n, float t, float eps, float* sums) {
  const V scale = all(eps), shift = all(1.0f - eps * t), power = all(1.0f / eps);
  V F = V{}, N = V{}, M = V{};
  for (int j = 0; j < n; j += W) {
    V u = larger(load_part(a + j, n - j, -INF) * scale + shift, all(1e-30f));
    I k = exponent(u);
    V f = u * two_to_minus(k) - 1.0f;
    V log_u = f * (1.44176065f + f * (-0.72490417f + f * (0.51750938f + f * -0.3296296f)));
    V y = (log_u + __builtin_convertvector(k, V)) * power, whole = nearest(larger(y, all(-126.0f))), rest = y - whole;
    V p = 0.9999245f + rest * (0.69310532f + rest * (0.24263996f + rest * 0.05600585f));
    p = y < -126.0f ? V{} : (V)((I)p + (__builtin_convertvector(whole, I) << 23));
    V upside_down = rough_inverse(u), slope = p * upside_down;
    F += p, N += slope, M += slope * upside_down;
  }
  sums[0] = sum(F), sums[W] = sum(N), sums[2 * W] = sum(M);
}

struct GroupSums {
  float lane[3 * W] = {};  // F or F − 1, N, M

  float* of(int r) { return lane + r; }
  V F() const { return load(lane); }
  V N() const { return load(lane + W); }
  V M() const { return load(lane + 2 * W); }
};

// `lowest_bound` of every row, from 4 vectors of its a.
template <int M>
static V lowest_bounds(const Group& g, const V (*part)[4]) {
  V t = V{};
  for (int step = 0; step < 3; step++) {
    GroupSums sums;
    for (int r = 0; r < g.rows; r++) {
      const V shift = all(1.0f - t[r] * (1.0f / M));
      V F = V{}, N = V{};
      for (int k = 0; k < 4; k++) {
        V u = larger(V{}, part[r][k] * (1.0f / M) + shift);
        V slope = u > 0.0f ? all(1.0f) : V{}, power = u;  // u^(M−1) and u^M
        for (int m = 1; m < M; m *= 2) slope *= power, power *= power;
        F += power, N += slope;
      }
      sums.of(r)[0] = sum(F), sums.of(r)[W] = sum(N);
    }
    V root = sums.F();
    for (int m = M; m > 1; m /= 2) root = square_root(root);
    t += sums.F() / sums.N() * (float)M * (1.0f - 1.0f / root);
  }
  return t - (float)M;
}

// The largest score of a row, and of every fourth vector of it.
static float find_top(const float* z, int n, V part[4]) {
  V best[4] = {all(-INF), all(-INF), all(-INF), all(-INF)};
  int j = 0;
  for (; j + 4 * W <= n; j += 4 * W)
    for (int k = 0; k < 4; k++) best[k] = larger(load(z + j + k * W), best[k]);
  for (int k = 0; j < n; j += W, k++) best[k] = larger(load(z + j), best[k]);
  for (int k = 0; k < 4; k++) part[k] = best[k];
  return largest(larger(larger(best[0], best[1]), larger(best[2], best[3])));
}

// Turns scores into a = z − top, in place, and packs those not below `lowest` if they are few; returns how many, or −1.
static int pack_candidates(float* z, int* places, int n, float top, float lowest) {
  int count = 0;
  const V least = all(lowest);
  for (int j = 0; j < n; j += W) {
    V a = load(z + j) - top;
    store(z + j, a);
    count += __builtin_popcount(not_below(a, least));
  }
  if (count > n - n / 3) return -1;
  I place = lanes();
  count = 0;
  for (int j = 0; j < n; j += W) {
    V a = load(z + j);
    unsigned bits = not_below(a, least);
    store_packed(z + count, bits, a);  // never ahead of what is still to be read
    store_packed(places + count, bits, place);
    count += __builtin_popcount(bits);
    place += W;
  }
  return count;
}

// max z, a bound of t from below, and the scores that can have weight.
static void find_supports(Group& g, float eps) {
  V part[W][4];
  for (int r = 0; r < g.rows; r++) {
    g.top[r] = find_top(g.scores[r], g.width, part[r]);
    for (int k = 0; k < 4; k++) part[r][k] -= g.top[r];
    if (g.top[r] != -INF) continue;
    for (int j = 0; j < g.width; j++)
      if (g.scores[r][j] != g.scores[r][j]) g.top[r] = g.scores[r][j];
  }
  const V first = all(-1.0f / eps);  // t = 0
  V lowest = first;
  if (eps >= 1.0f / 16) {
    lowest = eps >= 0.25f ? lowest_bounds<4>(g, part) : eps >= 0.125f ? lowest_bounds<8>(g, part)
                                                                       : lowest_bounds<16>(g, part);
    lowest = larger(lowest, first);
    lowest += 1e-6f * lowest;
  }
  for (int r = 0; r < g.rows; r++) {
    g.t[r] = lowest[r] + 1.0f / eps;
    g.counts[r] = g.top[r] == -INF ? 0 : pack_candidates(g.scores[r], g.places[r], g.width, g.top[r], lowest[r]);
  }
}

constexpr float CLOSE = 2e-3f;  // F − 1 from where the series of `finish_row` ends in the last digit of float32

// The weights of row r in place, from those at t in `p`, with F − 1 and the step to the root; returns how many are not 0
// where the row is packed.
static int finish_row(Group& g, int r, float eps, float excess, float by, float* p) {
  float *a = g.scores[r], t = g.t[r];
  const int n = g.length(r);
  for (int step = 0; step < 30 && (excess > CLOSE || excess < -CLOSE); step++) {  // NaN ends it too
    t += by;
    const Sums s = sums_at<GENERAL, true>(a, n, 1, 0.0f, t, eps, p);
    excess = s.excess, by = halley_step(s, eps);
  }
  // The digits of t end before those of p: the last step is taken in p, (1 − ε x)^(1/ε) for x = by/u.
  const V scale = all(eps), shift = all(1.0f - eps * t), bend = all(0.5f * (1.0f - eps));
  int kept = 0;
  for (int j = 0; j < n; j += W) {
    V x = by * inverse_of(larger(load_part(a + j, n - j, -INF) * scale + shift, all(1e-30f)));
    x = larger(x, all(-1.0f));  // where p is next to nothing
    V moved = load_part(p + j, n - j, 0.0f) * (1.0f - x * (1.0f - bend * x));
    moved = x >= 1.0f ? V{} : moved;
    if (g.counts[r] < 0) {
      store(a + j, moved);
      continue;
    }
    unsigned bits = not_below(moved, V{});
    V own = load(reinterpret_cast<float*>(g.places[r] + j));
    store_packed(a + kept, bits, moved);  // never ahead of what is still to be read
    store_packed(reinterpret_cast<float*>(g.places[r] + kept), bits, own);
    kept += __builtin_popcount(bits);
  }
  g.t[r] = t + by;
  return kept;
}

// Turns the scores of a group into weights: of packed rows those that are not 0, with their places, else in place. `spare`
// has room for all of them.
static void weigh_group(Group& g, float eps, const Block& spare) {
  find_supports(g, eps);
  const bool rough = eps >= 1.0f / 12;
  const V most = all(norm_step((float)g.width - 1.0f, eps));  // where the largest weight would be 1/n
  for (int pass = 0; pass < 2; pass++) {
    GroupSums sums;
    for (int r = 0; r < g.rows; r++) {
      const int n = g.length(r), stride = pass == 0 && n >= 64 * W ? 4 : 1;
      if (!n) continue;
      if (rough && pass == 0) {
        rough_sums(g.scores[r], n, stride, g.t[r], eps, sums.of(r));
      } else if (rough) {
        close_sums(g.scores[r], n, g.t[r], eps, sums.of(r));
      } else {
        const Sums s = sums_at<GENERAL, false>(g.scores[r], n, stride, 0.0f, g.t[r], eps, nullptr);
        sums.of(r)[0] = s.F(), sums.of(r)[W] = s.N, sums.of(r)[2 * W] = s.M;
      }
      const int vectors = (n + W - 1) / W;
      const float part = (float)vectors / (float)((vectors + stride - 1) / stride);
      for (int k = 0; k < 3; k++) sums.of(r)[k * W] *= part;
    }
    V t = load(g.t) + halley_steps(sums.F() - 1.0f, sums.N(), sums.M(), eps);
    t = larger(t, V{});
    store(g.t, t < most ? t : most);
  }
  GroupSums sums;
  for (int r = 0; r < g.rows; r++) {
    const Sums s = sums_at<GENERAL, true>(g.scores[r], g.length(r), 1, 0.0f, g.t[r], eps, spare.row(r));
    sums.of(r)[0] = s.excess, sums.of(r)[W] = s.N, sums.of(r)[2 * W] = s.M;
  }
  const V excess = sums.F(), by = halley_steps(excess, sums.N(), sums.M(), eps);
  for (int r = 0; r < g.rows; r++) {
    const int kept = finish_row(g, r, eps, excess[r], by[r], spare.row(r));
    if (g.counts[r] > 0) g.counts[r] = kept;
    if (g.counts[r] == 0) g.t[r] = 0.0f;
  }
}
