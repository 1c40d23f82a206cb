// Expected monotonic alignment, forward and backward (hf_entmax_asr.model.alignment is the specification).
#include <initializer_list>

#include "rows.h"

// What the walks over one lattice need; outside the lattice everything is 0.
struct Lattice {
  Carver room;
  Rows stop, go, one, two, border;

  explicit Lattice(int n) : stop(room, n), go(room, n), one(room, n), two(room, n), border(room, n) {}
  bool open() {
    if (!room.open()) return false;
    for (Rows* rows : {&stop, &go, &one, &two, &border}) rows->open(room);
    return true;
  }
};

// σ(e) and σ(−e) of a row; 0 and 1 where masked: nothing stops there.
static void stop_and_go(const float* e, const uint8_t* mask, int n, float* stop, float* go) {
  for (int j = 0; j < n; j += W) {
    V x = load_part(e + j, n - j, 0.0f);
    V small = exp(x < 0.0f ? x : -x), inverse = 1.0f / (1.0f + small);
    store_part(stop + j, n - j, x < 0.0f ? small * inverse : inverse);
    store_part(go + j, n - j, x < 0.0f ? inverse : small * inverse);
  }
  if (mask)
    for (int j = 0; j < n; j++)
      if (!mask[j]) stop[j] = 0.0f, go[j] = 1.0f;
}

static void clear(const Rows& rows, int from, int n) {
  for (int r = from; r < GROUP; r++) memset(rows[r], 0, n * sizeof(float));
}

// q_ij = q_{i,j−1} σ(−e_{i,j−1}) + α_{i−1,j}, α_ij = σ(e_ij) q_ij over one (U, S) lattice. `previous` is the row above it;
// null: every head starts at position 0. Row r of a group walks one column behind row r − 1.
static void align(const float* energy, const uint8_t* mask, const float* previous, float* alignment, float* q_out,
                  int targets, int n, Lattice& at) {
  const Rows &stop = at.stop, &go = at.go, &reached = at.one;
  float* above = at.border[0];
  if (previous) memcpy(above, previous, n * sizeof(float));
  else memset(above, 0, n * sizeof(float)), above[0] = 1.0f;
  for (int i = 0; i < targets; i += GROUP) {
    const int rows = targets - i < GROUP ? targets - i : GROUP;
    for (int r = 0; r < rows; r++) stop_and_go(energy + (int64_t)(i + r) * n, mask, n, stop[r], go[r]);
    clear(stop, rows, n), clear(go, rows, n);
    float q[GROUP] = {}, a[GROUP] = {};
    for (int j = 0; j < n + GROUP - 1; j++)
      for (int r = GROUP - 1; r >= 0; r--) {
        q[r] = q[r] * go[r][j - r - 1] + (r ? a[r - 1] : above[j]);
        a[r] = q[r] * stop[r][j - r];
        reached[r][j - r] = q[r];
      }
    for (int r = 0; r < rows; r++) {
      const int64_t row = (int64_t)(i + r) * n;
      for (int j = 0; j < n; j += W) {
        V reach = load_part(reached[r] + j, n - j, 0.0f);
        store_part(alignment + row + j, n - j, load_part(stop[r] + j, n - j, 0.0f) * reach);
        if (q_out) store_part(q_out + row + j, n - j, reach);
      }
    }
    memcpy(above, alignment + (int64_t)(i + rows - 1) * n, n * sizeof(float));
  }
}

// ā_ij = g_ij + q̄_{i+1,j}, q̄_ij = ā_ij σ(e) + q̄_{i,j+1} σ(−e), ē_ij = σ(e) σ(−e) q_ij (ā_ij − q̄_{i,j+1}), from the last
// corner of the lattice to the first; row 0 of a group is its last. q̄ of the first row is the gradient of `previous`.
static void align_back(const float* energy, const uint8_t* mask, const float* q, const float* grad, float* d_energy,
                           float* d_previous, int targets, int n, Lattice& at) {
  const Rows &stop = at.stop, &go = at.go, &gap = at.one, &q_bars = at.two;
  float* below = at.border[0];
  memset(below, 0, n * sizeof(float));
  int rows = 0;
  for (int last = targets - 1; last >= 0; last -= rows) {
    rows = last + 1 < GROUP ? last + 1 : GROUP;
    for (int r = 0; r < rows; r++) stop_and_go(energy + (int64_t)(last - r) * n, mask, n, stop[r], go[r]);
    clear(stop, rows, n), clear(go, rows, n);
    for (int r = 0; r < rows; r++) memcpy(gap[r], grad + (int64_t)(last - r) * n, n * sizeof(float));  // g at first
    clear(gap, rows, n);
    float q_bar[GROUP] = {};
    for (int column = n - 1; column > -GROUP; column--)
      for (int r = GROUP - 1; r >= 0; r--) {
        const int j = column + r;
        const float a_bar = gap[r][j] + (r ? q_bar[r - 1] : below[j]);
        gap[r][j] = a_bar - q_bar[r];
        q_bar[r] = q_bar[r] * go[r][j] + a_bar * stop[r][j];
        q_bars[r][j] = q_bar[r];
      }
    for (int r = 0; r < rows; r++) {
      const int64_t row = (int64_t)(last - r) * n;
      for (int j = 0; j < n; j += W) {
        V both = load_part(stop[r] + j, n - j, 0.0f) * load_part(go[r] + j, n - j, 0.0f);
        store_part(d_energy + row + j, n - j,
                   both * load_part(q + row + j, n - j, 0.0f) * load_part(gap[r] + j, n - j, 0.0f));
      }
    }
    memcpy(below, q_bars[rows - 1], n * sizeof(float));
    for (int r = 0; r < GROUP; r++)  // what the skewed walk left outside the row
      for (int m = 1; m <= GROUP; m++) gap[r][-m] = gap[r][n - 1 + m] = 0.0f;
  }
  if (d_previous) memcpy(d_previous, below, n * sizeof(float));
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
