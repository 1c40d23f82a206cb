// α-entmax attention, backward: over the weights that the forward kept, or made again from each row's max z and t. Where
// they are few, every sum runs over those alone; where not, it is a dense product.
#include "attention.h"

struct BackwardSpace : Workspace {
  size_t second_at, third_at, grads_at, d_query_at, d_keys_at, d_values_at, turned_values_at, gaps_at;
  Block second, third, grads, d_query, d_keys, d_values;
  float *turned_values, *g, *dz;  // Vᵀ; of one packed row
  bool has_turned, has_turned_values;

  explicit BackwardSpace(const Problem& problem) : Workspace(problem) {
    second_at = room.reserve<float>(rows * stride);
    third_at = room.reserve<float>(p.dropout > 0 ? rows * stride : 0);
    grads_at = room.reserve<float>(rows * value_width);
    d_query_at = room.reserve<float>(rows * width);
    d_keys_at = room.reserve<float>(p.keys * width);
    d_values_at = room.reserve<float>(p.keys * value_width);
    turned_values_at = room.reserve<float>(rounded_up(p.keys, TILE_COLUMNS) * p.value_width);
    gaps_at = room.reserve<float>(2 * (stride + 2 * W));
  }
  bool open() {
    if (!Workspace::open()) return false;
    second = {room.at<float>(second_at), stride};
    third = {room.at<float>(third_at), stride};
    grads = {room.at<float>(grads_at), value_width};
    d_query = {room.at<float>(d_query_at), width};
    d_keys = {room.at<float>(d_keys_at), width};
    d_values = {room.at<float>(d_values_at), value_width};
    turned_values = room.at<float>(turned_values_at);
    g = room.at<float>(gaps_at), dz = g + stride + 2 * W;
    return true;
  }
};

// g_c = (plus what is there, unless first) grad · rows[index_c], and d_rows[index_c] += weight_c grad.
template <int N>
static void through_values(const float* grad, const float* weights, const int* index, int count, const float* rows,
                           int64_t stride, float* d_rows, int64_t d_stride, float* g, bool first) {
  V o[N];
  for (int n = 0; n < N; n++) o[n] = load(grad + n * W);
  for (int c = 0; c < count; c++) {
    const float* from = rows + index[c] * stride;
    float* to = d_rows + index[c] * d_stride;
    V dot = V{};
    for (int n = 0; n < N; n++) {
      dot += o[n] * load(from + n * W);
      store(to + n * W, load(to + n * W) + weights[c] * o[n]);
    }
    g[c] = (first ? 0.0f : g[c]) + sum(dot);
  }
}

// out = Σ_c dz_c rows[index_c], and d_rows[index_c] += dz_c query.
template <int N>
static void through_scores(const float* query, const float* dz, const int* index, int count, const float* rows,
                           int64_t stride, float* d_rows, int64_t d_stride, float* out) {
  V q[N], total[N] = {};
  for (int n = 0; n < N; n++) q[n] = load(query + n * W);
  for (int c = 0; c < count; c++) {
    const float* from = rows + index[c] * stride;
    float* to = d_rows + index[c] * d_stride;
    for (int n = 0; n < N; n++) {
      total[n] += dz[c] * load(from + n * W);
      store(to + n * W, load(to + n * W) + dz[c] * q[n]);
    }
  }
  for (int n = 0; n < N; n++) store(out + n * W, total[n]);
}

template <Kind K>
static float backward_of_row(const Problem& p, const float* weights, const float* g, float* dz, int n, float eps) {
  return p.d_alpha ? row_backward<K, true>(weights, g, dz, n, eps) : row_backward<K, false>(weights, g, dz, n, eps);
}

static void add_bias_gradient(const Head& head, int i, const float* dz, const int* index, int count) {
  const Problem& p = head.p;
  float* to = p.d_bias + head.b * p.d_bias_stride[0] + head.h * p.d_bias_stride[1] + i * p.d_bias_stride[2];
  for (int c = 0; c < count; c++) to[(index ? index[c] : c) * p.d_bias_stride[3]] += dz[c];
}

template <Kind K>
static void sparse_row(const Head& head, BackwardSpace& w, int i, int r, const float* weights, const int* index,
                       int count) {
  const Problem& p = head.p;
  const int64_t row = p.row(head.b, head.h, i);
  const Dropout dropout = {p.dropout, p.seed};
  const float* read = weights;
  if (p.dropout > 0) {
    memcpy(w.spare, weights, count * sizeof(float));
    dropout.apply(row, index, count, w.spare);
    read = w.spare;
  }
#define CALL(N)                                                                                                 \
  through_values<N>(w.grads.row(r) + at, read, index, count, w.values.data + at, w.values.stride, \
                    w.d_values.data + at, w.d_values.stride, w.g, at == 0)
  IN_PARTS(w.value_width, CALL)
#undef CALL
  if (p.dropout > 0) dropout.apply(row, index, count, w.g);
  const float d_alpha = backward_of_row<K>(p, weights, w.g, w.dz, count, head.eps);
  if (p.d_alpha) p.d_alpha[row] = d_alpha;
  if (p.d_bias) add_bias_gradient(head, i, w.dz, index, count);
#define CALL(N)                                                                                          \
  through_scores<N>(w.query.row(r) + at, w.dz, index, count, w.keys.data + at, w.keys.stride,            \
                    w.d_keys.data + at, w.d_keys.stride, w.d_query.row(r) + at)
  IN_PARTS(w.width, CALL)
#undef CALL
}

template <Kind K>
static void dense_rows(const Head& head, BackwardSpace& w, int first, int rows, int columns, int end) {
  const Problem& p = head.p;
  const int64_t first_row = p.row(head.b, head.h, first);
  const Dropout dropout = {p.dropout, p.seed};
  if (!w.has_turned_values) pack_transposed(w.values, head.limit, p.value_width, w.turned_values);
  w.has_turned_values = true;
  multiply_packed(rows, rounded_up(end, TILE_COLUMNS), p.value_width, w.grads, w.turned_values, w.second);
  const Block* read = &w.scores;
  if (p.dropout > 0) {
    for (int r = 0; r < rows; r++) {
      memcpy(w.third.row(r), w.scores.row(r), columns * sizeof(float));
      dropout.apply(first_row + r, nullptr, columns, w.third.row(r));
      dropout.apply(first_row + r, nullptr, columns, w.second.row(r));
    }
    read = &w.third;
  }
  multiply(end, w.value_width, rows, read->data, 1, w.stride, w.grads, w.d_values, true);
  for (int r = 0; r < rows; r++) {
    float* weights = w.scores.row(r);  // become dz
    const float d_alpha = backward_of_row<K>(p, weights, w.second.row(r), weights, columns, head.eps);
    if (p.d_alpha) p.d_alpha[first_row + r] = d_alpha;
    if (p.d_bias) add_bias_gradient(head, first + r, weights, nullptr, end);
  }
  multiply(rows, w.width, end, w.scores.data, w.stride, 1, w.keys, w.d_query, false);
  multiply(end, w.width, rows, w.scores.data, 1, w.stride, w.query, w.d_keys, true);
}

// Weights of a row from its scores, max z and t, in place; returns how many are not 0.
template <Kind K>
static int weigh_again(float* z, int columns, float eps, float top, float t) {
  if (top == -INF) {
    memset(z, 0, columns * sizeof(float));
    return 0;
  }
  const Curve<K> curve(eps, t);
  int count = 0;
  for (int j = 0; j < columns; j += W) {
    V weight = curve.weight(load(z + j) - top);
    store(z + j, weight);
    count += __builtin_popcount(not_below(weight, V{}));
  }
  return count;
}

template <Kind K>
static void backward_block(const Head& head, BackwardSpace& w, int first, int rows) {
  const Problem& p = head.p;
  const int64_t first_row = p.row(head.b, head.h, first);
  if (p.kept_count[first_row] >= 0) {
    for (int r = 0; r < rows; r++) {
      const int count = p.kept_count[first_row + r];
      const int64_t from = p.kept_at[first_row + r];
      for (int c = 0; c < count; c++) w.index[c] = p.kept_places[from + c];
      sparse_row<K>(head, w, first + r, r, p.kept_weights + from, w.index, count);
    }
    return;
  }
  const int end = head.limit_of_block(first, rows);
  if (p.kept_count[first_row] == -2) {
    const int columns = (int)rounded_up(end, W);
    for (int r = 0; r < rows; r++)
      memcpy(w.scores.row(r), p.kept_weights + p.kept_at[first_row + r], columns * sizeof(float));
    return dense_rows<K>(head, w, first, rows, columns, end);
  }
  if (!w.has_turned) pack_transposed(w.keys, head.limit, p.width, w.turned);
  w.has_turned = true;
  const int columns = head.bring_scores(w, first, rows, end);
  int64_t total = 0;
  for (int r = 0; r < rows; r++) {
    const float* stats = p.stats + 2 * (first_row + r);
    total += weigh_again<K>(w.scores.row(r), columns, head.eps, stats[0], stats[1]);
  }
  if (total > DENSE_BACKWARD_ABOVE * rows * columns && rows >= TILE_ROWS) return dense_rows<K>(head, w, first, rows, columns, end);
  for (int r = 0; r < rows; r++) {
    const int count = pack_row(w.scores.row(r), columns, w.packed, w.index);
    sparse_row<K>(head, w, first + r, r, w.packed, w.index, count);
  }
}

static void backward_head(const Head& head, BackwardSpace& w, int chunk) {
  const Problem& p = head.p;
  head.bring_keys_and_values(w);
  w.has_turned = w.has_turned_values = false;
  memset(w.d_keys.data, 0, p.keys * w.width * sizeof(float));
  memset(w.d_values.data, 0, p.keys * w.value_width * sizeof(float));
  const int64_t blocks = (p.queries + w.rows - 1) / w.rows;
  for (int64_t block = blocks * chunk / p.chunks; block < blocks * (chunk + 1) / p.chunks; block++) {
    const int first = (int)block * w.rows, left = p.queries - first, rows = left < w.rows ? left : w.rows;
    const float* grad = p.grad + head.b * p.grad_stride[0] + head.h * p.grad_stride[1] + first * p.grad_stride[2];
    copy_rows(grad, p.grad_stride[2], rows, p.value_width, 1.0f, w.grads);
    head.bring_queries(w, first, rows);
#define CALL(K) backward_block<K>(head, w, first, rows)
    FOR_KIND(head.eps, CALL)
#undef CALL
    float* out = p.d_query + head.b * p.d_query_stride[0] + head.h * p.d_query_stride[1] + first * p.d_query_stride[2];
    for (int r = 0; r < rows; r++)
      for (int d = 0; d < p.width; d += W)
        store_part(out + r * p.d_query_stride[2] + d, p.width - d, load(w.d_query.row(r) + d) * p.scale);
  }
  const int64_t part = ((int64_t)chunk * p.batch + head.b) * p.keys * p.heads + head.h;  // (chunks, B, S, H, ·)
  for (int64_t j = 0; j < p.keys; j++) {
    memcpy(p.d_key + (part + j * p.heads) * p.width, w.d_keys.row(j), p.width * sizeof(float));
    memcpy(p.d_value + (part + j * p.heads) * p.value_width, w.d_values.row(j), p.value_width * sizeof(float));
  }
}

extern "C" {

// Returns 0, or 1 when there was no memory. Heads that share a row of the bias are one task, so that no two threads add to
// the same place of its gradient.
int attention_backward(const Problem* problem, int threads, Launch launch) {
  const Problem& p = *problem;
  const bool one_batch = p.d_bias && p.d_bias_stride[0] == 0, one_head = p.d_bias && p.d_bias_stride[1] == 0;
  const int batches = one_batch ? 1 : p.batch, heads = one_head ? 1 : p.heads;
  return !run_tasks((int64_t)batches * heads * p.chunks, {threads, launch}, [=, &p](auto next) {
    BackwardSpace w(p);
    if (!w.open()) return false;
    for (int64_t task; (task = next()) >= 0;) {
      const int chunk = (int)(task % p.chunks), pair = (int)(task / p.chunks);
      for (int b = one_batch ? 0 : pair / heads; b < (one_batch ? p.batch : pair / heads + 1); b++)
        for (int h = one_head ? 0 : pair % heads; h < (one_head ? p.heads : pair % heads + 1); h++)
          backward_head(Head(p, b, h), w, chunk);
    }
    return true;
  });
}
}
