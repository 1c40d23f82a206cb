// α-entmax attention, transform(Q Kᵀ · scale + bias) V, a block of rows at a time: forward. Where few weights are left,
// V is summed over those alone, and they are kept for the backward as long as there is room.
#include "attention.h"
#include "entmax_group.h"

// Above this density a block of rows takes the dense product with V.
constexpr float DENSE_ABOVE = 0.5f;

// Turns the scores of a block into weights. A row r with counts[r] >= 0 has so many, packed at the start of its scores,
// with their places; with −1 its weights stand in place. Returns an upper bound of how many weights there are.
template <Kind K>
static int64_t weigh_block(const Head& head, Workspace& w, const Block& spare, int rows, int columns, float* stats,
                           int* counts) {
  int64_t total = 0;
  if (K == GENERAL && head.eps < 0.5f) {
    for (int first = 0; first < rows; first += W) {
      Group g = {};
      g.rows = rows - first < W ? rows - first : W;
      g.width = columns;
      for (int r = 0; r < g.rows; r++) g.scores[r] = w.scores.row(first + r), g.places[r] = w.places_of(first + r);
      weigh_group(g, head.eps, spare);
      for (int r = 0; r < g.rows; r++) {
        counts[first + r] = g.counts[r];
        total += g.length(r);
        if (stats) stats[2 * (first + r)] = g.top[r], stats[2 * (first + r) + 1] = g.t[r];
      }
    }
    return total;
  }
  for (int r = 0; r < rows; r++) {
    float* z = w.scores.row(r);
    Support found = find_support<K>(z, columns, head.eps, w.packed, w.index);
    if (found.count < 0) {
      found.t = weigh<K>(z, columns, found.top, found.t, head.eps, z, w.spare);
    } else {
      if (found.count) found.count = pack_weights<K>(w.packed, w.index, w.spare, found, head.eps);
      memcpy(z, w.packed, found.count * sizeof(float));
      memcpy(w.places_of(r), w.index, found.count * sizeof(int));
    }
    counts[r] = found.count;
    total += found.count < 0 ? columns : found.count;
    if (stats) stats[2 * r] = found.top, stats[2 * r + 1] = found.t;
  }
  return total;
}

static void unpack_rows(Workspace& w, int rows, int columns, int* counts) {
  for (int r = 0; r < rows; r++) {
    if (counts[r] < 0) continue;
    float* p = w.scores.row(r);
    memcpy(w.spare, p, counts[r] * sizeof(float));
    memset(p, 0, columns * sizeof(float));
    for (int c = 0; c < counts[r]; c++) p[w.places_of(r)[c]] = w.spare[c];
    counts[r] = -1;
  }
}

static int64_t pack_rows(Workspace& w, int rows, int columns, int* counts) {
  int64_t total = 0;
  for (int r = 0; r < rows; r++) {
    if (counts[r] < 0) {
      counts[r] = pack_row(w.scores.row(r), columns, w.packed, w.index);
      memcpy(w.scores.row(r), w.packed, counts[r] * sizeof(float));
      memcpy(w.places_of(r), w.index, counts[r] * sizeof(int));
    }
    total += counts[r];
  }
  return total;
}

// Keeps the weights of a block for the backward, if there is room for them: packed ones with their places, else whole rows
// of `columns`.
static void keep_rows(const Problem& p, const Workspace& w, int64_t first_row, int rows, int columns, const int* counts,
                      int64_t total, bool dense) {
  if (dense) total = (int64_t)rows * columns;
  const bool wanted = dense || total <= DENSE_BACKWARD_ABOVE * rows * columns;
  int64_t at = wanted ? __atomic_fetch_add(p.kept_used, total, __ATOMIC_RELAXED) : 0;
  const bool fits = wanted && at + total <= p.capacity;
  for (int r = 0; r < rows; r++) {
    const int count = dense ? columns : counts[r];
    p.kept_count[first_row + r] = !fits ? -1 : dense ? -2 : count;
    p.kept_at[first_row + r] = at;
    if (!fits) continue;
    memcpy(p.kept_weights + at, w.scores.row(r), count * sizeof(float));
    if (!dense)
      for (int c = 0; c < count; c++) p.kept_places[at + c] = (uint16_t)w.places_of(r)[c];
    at += count;
  }
}

static void attend_block(const Head& head, Workspace& w, const Block& sums, const Block& spare, int first, int rows) {
  const Problem& p = head.p;
  const int end = head.limit_of_block(first, rows);
  const int64_t first_row = p.row(head.b, head.h, first);
  const Dropout dropout = {p.dropout, p.seed};
  int counts[64];
  head.bring_queries(w, first, rows);
  const int columns = head.bring_scores(w, first, rows, end);
  int64_t total = 0;
  float* stats = p.stats ? p.stats + 2 * first_row : nullptr;
#define CALL(K) total = weigh_block<K>(head, w, spare, rows, columns, stats, counts)
  FOR_KIND(head.eps, CALL)
#undef CALL
  const bool dense = total > DENSE_ABOVE * rows * columns && rows >= TILE_ROWS;
  if (dense) {
    unpack_rows(w, rows, columns, counts);
    if (p.stats) keep_rows(p, w, first_row, rows, columns, counts, total, true);
    if (p.dropout > 0)
      for (int r = 0; r < rows; r++) dropout.apply(first_row + r, nullptr, columns, w.scores.row(r));
    multiply(rows, w.value_width, end, w.scores.data, w.stride, 1, w.values, sums, false);
  } else {
    total = pack_rows(w, rows, columns, counts);
    if (p.stats) keep_rows(p, w, first_row, rows, columns, counts, total, false);
    for (int r = 0; r < rows; r++) {
      float *weights = w.scores.row(r), *to = sums.row(r);
      if (p.dropout > 0) dropout.apply(first_row + r, w.places_of(r), counts[r], weights);
#define CALL(N) sum_rows<N>(weights, w.places_of(r), counts[r], w.values.data + at, w.values.stride, to + at)
      IN_PARTS(w.value_width, CALL)
#undef CALL
    }
  }
  float* out = p.out + head.b * p.out_stride[0] + head.h * p.out_stride[1] + first * p.out_stride[2];
  for (int r = 0; r < rows; r++)
    for (int d = 0; d < p.value_width; d += W)
      store_part(out + r * p.out_stride[2] + d, p.value_width - d, load(sums.row(r) + d));
}

extern "C" {

// Returns 0, or 1 when there was no memory.
int attention_forward(const Problem* problem, int threads, Launch launch) {
  const Problem& p = *problem;
  const int64_t tasks = (int64_t)p.batch * p.heads * p.chunks;
  return !run_tasks(tasks, {threads, launch}, [&p](auto next) {
    Workspace w(p);
    const size_t sums_at = w.room.template reserve<float>(w.rows * w.value_width);
    const size_t spare_at = w.room.template reserve<float>(W * w.stride);
    if (!w.open()) return false;
    const Block sums = {w.room.template at<float>(sums_at), w.value_width};
    const Block spare = {w.room.template at<float>(spare_at), w.stride};
    const int blocks = (p.queries + w.rows - 1) / w.rows;
    for (int64_t task; (task = next()) >= 0;) {
      const int chunk = (int)(task % p.chunks), pair = (int)(task / p.chunks);
      const Head head(p, pair / p.heads, pair % p.heads);
      head.bring_keys_and_values(w);
      pack_transposed(w.keys, head.limit, p.width, w.turned);
      for (int64_t block = (int64_t)blocks * chunk / p.chunks; block < (int64_t)blocks * (chunk + 1) / p.chunks; block++) {
        const int first = (int)block * w.rows, left = p.queries - first;
        attend_block(head, w, sums, spare, first, left < w.rows ? left : w.rows);
      }
    }
    return true;
  });
}
}
