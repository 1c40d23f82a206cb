// Expected monotonic alignment, forward and backward (hf_entmax_asr.model.alignment is the specification).
#include "rows.h"

// What the walks over one lattice need; outside the lattice everything is 0.
struct Lattice {
  Carver room;
  Rows<float> smaller;
  Rows<double> stop, go, one, two, border;

  explicit Lattice(int n) : smaller(room, n), stop(room, n), go(room, n), one(room, n), two(room, n), border(room, n) {}
  bool open() {
    if (!room.open()) return false;
    smaller.open(room), stop.open(room), go.open(room), one.open(room), two.open(room), border.open(room);
    return true;
  }
  void clear_from(int row, int n) {
    for (int r = row; r < GROUP; r++) memset(stop[r], 0, n * sizeof(double)), memset(go[r], 0, n * sizeof(double));
  }

  // σ(e) and σ(−e) of a row: the smaller of the two to float32's relative precision, the other as what is left of 1.
  // 0 and 1 where masked: nothing stops there.
  void stop_and_go(const float* e, const uint8_t* mask, int n, int row) {
    float* least = smaller[row];
    for (int j = 0; j < n; j += W) {
      V x = load_part(e + j, n - j, 0.0f);
      V tiny = exp(x < 0.0f ? x : -x);
      store(least + j, tiny / (1.0f + tiny));
    }
    double *s = stop[row], *g = go[row];
    for (int j = 0; j < n; j++) {
      const double low = least[j], high = 1.0 - low;
      s[j] = e[j] < 0.0f ? low : high;
      g[j] = e[j] < 0.0f ? high : low;
    }
    if (mask)
      for (int j = 0; j < n; j++)
        if (!mask[j]) s[j] = 0.0, g[j] = 1.0;
  }
};

// q_ij = q_{i,j−1} σ(−e_{i,j−1}) + α_{i−1,j}, α_ij = σ(e_ij) q_ij over one (U, S) lattice. `previous` is the row above it;
// null: every head starts at position 0. Row r of a group walks one column behind row r − 1.
static void align(const float* energy, const uint8_t* mask, const float* previous, float* alignment, float* q_out,
                  int targets, int n, Lattice& at) {
  const Rows<double>&stop = at.stop, &go = at.go, &reached = at.one;
  double* above = at.border[0];
  for (int j = 0; j < n; j++) above[j] = previous ? previous[j] : j == 0;
  for (int i = 0; i < targets; i += GROUP) {
    const int rows = targets - i < GROUP ? targets - i : GROUP;
    for (int r = 0; r < rows; r++) at.stop_and_go(energy + (int64_t)(i + r) * n, mask, n, r);
    at.clear_from(rows, n);
    double q[GROUP] = {}, a[GROUP] = {};
    for (int j = 0; j < n + GROUP - 1; j++)
      for (int r = GROUP - 1; r >= 0; r--) {
        q[r] = q[r] * go[r][j - r - 1] + (r ? a[r - 1] : above[j]);
        a[r] = q[r] * stop[r][j - r];
        reached[r][j - r] = q[r];
      }
    for (int r = 0; r < rows; r++) {
      const int64_t row = (int64_t)(i + r) * n;
      for (int j = 0; j < n; j++) alignment[row + j] = (float)(reached[r][j] * stop[r][j]);
      if (q_out)
        for (int j = 0; j < n; j++) q_out[row + j] = (float)reached[r][j];
    }
    for (int j = 0; j < n; j++) above[j] = reached[rows - 1][j] * stop[rows - 1][j];
  }
}

// ā_ij = g_ij + q̄_{i+1,j}, q̄_ij = ā_ij σ(e) + q̄_{i,j+1} σ(−e), ē_ij = σ(e) σ(−e) q_ij (ā_ij − q̄_{i,j+1}), from the last
// corner of the lattice to the first; row 0 of a group is its last. q̄ of the first row is the gradient of `previous`.
static void align_back(const float* energy, const uint8_t* mask, const float* q, const float* grad, float* d_energy,
                       float* d_previous, int targets, int n, Lattice& at) {
  const Rows<double>&stop = at.stop, &go = at.go, &gap = at.one, &q_bars = at.two;
  double* below = at.border[0];
  memset(below, 0, n * sizeof(double));
  int rows = 0;
  for (int last = targets - 1; last >= 0; last -= rows) {
    rows = last + 1 < GROUP ? last + 1 : GROUP;
    for (int r = 0; r < GROUP; r++) {  // the gap holds g at first, and 0 outside the row
      const int64_t row = (int64_t)(last - r) * n;
      memset(gap[r] - GROUP, 0, (n + 2 * GROUP) * sizeof(double));
      if (r >= rows) continue;
      for (int j = 0; j < n; j++) gap[r][j] = grad[row + j];
      at.stop_and_go(energy + row, mask, n, r);
    }
    at.clear_from(rows, n);
    double q_bar[GROUP] = {};
    for (int column = n - 1; column > -GROUP; column--)
      for (int r = GROUP - 1; r >= 0; r--) {
        const int j = column + r;
        const double a_bar = gap[r][j] + (r ? q_bar[r - 1] : below[j]);
        gap[r][j] = a_bar - q_bar[r];
        q_bar[r] = q_bar[r] * go[r][j] + a_bar * stop[r][j];
        q_bars[r][j] = q_bar[r];
      }
    for (int r = 0; r < rows; r++) {
      const int64_t row = (int64_t)(last - r) * n;
      for (int j = 0; j < n; j++) d_energy[row + j] = (float)(stop[r][j] * go[r][j] * gap[r][j] * q[row + j]);
    }
    memcpy(below, q_bars[rows - 1], n * sizeof(double));
  }
  if (d_previous)
    for (int j = 0; j < n; j++) d_previous[j] = (float)below[j];
}

extern "C" {

// energy, alignment, q (or null): (lattices, targets, n); mask: (lattices / heads, n) bytes, or null; previous:
// (lattices, n), or null. Returns 0, or 1 when there was no memory.
int align_forward(const float* energy, const uint8_t* mask, const float* previous, float* alignment, float* q,
                  int64_t lattices, int heads, int targets, int n, int threads, Launch launch) {
  return !run_tasks(lattices, {threads, launch}, [=](auto next) {
    Lattice at(n);
    if (!at.open()) return false;
    for (int64_t task; (task = next()) >= 0;) {
      const int64_t from = task * targets * n;
      align(energy + from, mask ? mask + task / heads * n : nullptr, previous ? previous + task * n : nullptr,
            alignment + from, q ? q + from : nullptr, targets, n, at);
    }
    return true;
  });
}

int align_backward(const float* energy, const uint8_t* mask, const float* q, const float* grad, float* d_energy,
                   float* d_previous, int64_t lattices, int heads, int targets, int n, int threads, Launch launch) {
  return !run_tasks(lattices, {threads, launch}, [=](auto next) {
    Lattice at(n);
    if (!at.open()) return false;
    for (int64_t task; (task = next()) >= 0;) {
      const int64_t from = task * targets * n;
      align_back(energy + from, mask ? mask + task / heads * n : nullptr, q + from, grad + from, d_energy + from,
                 d_previous ? d_previous + task * n : nullptr, targets, n, at);
    }
    return true;
  });
}
}
