// What the forward and the backward of attention share: the problem as Python hands it over, the scores of a block of
// rows, and the sums over the few keys that a sparse row reads.
#pragma once
#include "entmax_row.h"
#include "matrix.h"
#include "parallel.h"

typedef uint32_t U __attribute__((vector_size(4 * W), may_alias));

// Axes: B batch, H heads, T queries, S keys, D width of a head, E width of a value. Strides count elements; those of the
// last axis of query, key, value, their gradients and the output are 1. Pointers that do not apply are null.
struct Problem {
  int32_t batch, heads, queries, keys, width, value_width, causal, chunks;
  // A query reads its own block of so many keys and so many blocks before it; 0 and −1: no such limit.
  int32_t chunk_size, left_chunks;
  float scale, dropout;
  uint64_t seed;
  const float *query, *key, *value;
  int64_t query_stride[3], key_stride[3], value_stride[3];  // B, H, row
  const double* alpha;
  int64_t alpha_stride[2];  // B, H
  const uint8_t* allowed;
  int64_t allowed_stride[4];  // B, H, T, S; 0 where broadcast
  const float* bias;
  int64_t bias_stride[4];

  // Of each row, for the backward: max z and t (B, H, T, 2); where its weights are kept, and how many (−1: not kept,
  // −2: all of them, without places).
  float* stats;
  int64_t* kept_at;
  int32_t* kept_count;
  float* kept_weights;
  uint16_t* kept_places;
  int64_t capacity;
  int64_t* kept_used;

  float* out;  // forward
  int64_t out_stride[3];
  const float* grad;  // backward
  int64_t grad_stride[3];
  float *d_query, *d_key, *d_value;  // those of key and value per chunk: (chunks, B, S, H, D)
  int64_t d_query_stride[3];
  float* d_alpha;  // (B, H, T), or null
  float* d_bias;
  int64_t d_bias_stride[4];

  int64_t row(int b, int h, int i) const { return ((int64_t)b * heads + h) * queries + i; }
};

// Above this density a block of rows takes the dense products in the backward.
constexpr float DENSE_BACKWARD_ABOVE = 0.45f;

constexpr int64_t BLOCK_FLOATS = 1 << 16;  // of scores at a time: 256 KiB

static inline int rows_at_once(const Problem& p, int64_t stride) {
  int64_t rows = BLOCK_FLOATS / stride / TILE_ROWS * TILE_ROWS;
  rows = rows < 2 * TILE_ROWS ? 2 * TILE_ROWS : rows > 64 ? 64 : rows;
  const int64_t all_rows = rounded_up(p.queries, TILE_ROWS);
  return (int)(rows < all_rows ? rows : all_rows);
}

// Memory for blocks of rows of one head; each thread has one.
struct Workspace {
  Carver room;
  const Problem& p;
  const int64_t stride, width, value_width;  // padded
  const int rows;
  const bool copies;  // of keys and values: to have them close together, and padded
  size_t scores_at, places_at, query_at, keys_at, values_at, turned_at, packed_at, spare_at, index_at;
  Block scores, query, keys, values;
  float *turned, *packed, *spare;  // Kᵀ; one row each
  int *places, *index;             // of the packed rows of the block; of one row

  explicit Workspace(const Problem& problem)
      : p(problem),
        stride(rounded_up(p.keys, TILE_COLUMNS) + W),  // + W: rows do not all start in the same cache set
        width(rounded_up(p.width, W)),
        value_width(rounded_up(p.value_width, W)),
        rows(rows_at_once(p, stride)),
        copies(p.queries >= 16 || p.width % W || p.value_width % W) {
    scores_at = room.reserve<float>(rows * stride);
    places_at = room.reserve<int>(rows * stride);
    query_at = room.reserve<float>(rows * width);
    keys_at = room.reserve<float>(copies ? p.keys * width : 0);
    values_at = room.reserve<float>(copies ? p.keys * value_width : 0);
    turned_at = room.reserve<float>(rounded_up(p.keys, TILE_COLUMNS) * p.width);
    packed_at = room.reserve<float>(stride + 2 * W);
    spare_at = room.reserve<float>(stride + 2 * W);
    index_at = room.reserve<int>(stride + 2 * W);
  }
  bool open() {
    if (!room.open()) return false;
    scores = {room.at<float>(scores_at), stride};
    query = {room.at<float>(query_at), width};
    turned = room.at<float>(turned_at), packed = room.at<float>(packed_at), spare = room.at<float>(spare_at);
    places = room.at<int>(places_at), index = room.at<int>(index_at);
    return true;
  }
  int* places_of(int r) const { return places + r * stride; }
};

// One head of one batch entry.
struct Head {
  const Problem& p;
  int b, h;
  float eps;
  int limit;   // keys that any row may read
  bool holes;  // whether the mask forbids some key below the limit

  Head(const Problem& problem, int batch, int head) : p(problem), b(batch), h(head) {
    eps = (float)(p.alpha[b * p.alpha_stride[0] + h * p.alpha_stride[1]] - 1.0);
    limit = p.keys;
    holes = p.allowed != nullptr;
    if (p.allowed && p.allowed_stride[2] == 0) {  // one mask for all rows, most often of padding
      limit = last_allowed(0, 0);
      holes = false;
      for (int j = 0; j < limit && !holes; j++) holes = !mask_row(0)[j * p.allowed_stride[3]];
    }
  }

  const uint8_t* mask_row(int i) const {
    return p.allowed + b * p.allowed_stride[0] + h * p.allowed_stride[1] + i * p.allowed_stride[2];
  }
  // One more than the last key that row i may read, but at least `known`.
  int last_allowed(int i, int known) const {
    const uint8_t* mask = mask_row(i);
    int end = p.keys;
    while (end > known && !mask[(end - 1) * p.allowed_stride[3]]) end--;
    return end > known ? end : known;
  }
  // The keys that row i may read begin here, and end there.
  int start_of_row(int i) const {
    const int before = p.chunk_size && p.left_chunks >= 0 ? i / p.chunk_size - p.left_chunks : 0;
    return before > 0 ? before * p.chunk_size : 0;
  }
  int limit_of_row(int i) const {
    int end = limit;
    if (p.causal && i + 1 < end) end = i + 1;
    if (p.chunk_size && end > p.chunk_size && (i / p.chunk_size + 1) * p.chunk_size < end)
      end = (i / p.chunk_size + 1) * p.chunk_size;
    return end;
  }
  int limit_of_block(int first, int rows) const {
    int end = limit_of_row(first + rows - 1);
    if (!holes || p.allowed_stride[2] == 0) return end;
    int known = 0;
    for (int i = first; i < first + rows && known < end; i++) known = last_allowed(i, known);
    return known < end ? known : end;
  }

  void bring_keys_and_values(Workspace& w) const {
    const float* key = p.key + b * p.key_stride[0] + h * p.key_stride[1];
    const float* value = p.value + b * p.value_stride[0] + h * p.value_stride[1];
    w.keys = {const_cast<float*>(key), p.key_stride[2]};
    w.values = {const_cast<float*>(value), p.value_stride[2]};
    if (w.copies) {
      w.keys = {w.room.at<float>(w.keys_at), w.width};
      w.values = {w.room.at<float>(w.values_at), w.value_width};
      copy_rows(key, p.key_stride[2], limit, p.width, 1.0f, w.keys);
      copy_rows(value, p.value_stride[2], limit, p.value_width, 1.0f, w.values);
    }
  }

  void bring_queries(Workspace& w, int first, int rows) const {
    const float* from = p.query + b * p.query_stride[0] + h * p.query_stride[1] + first * p.query_stride[2];
    copy_rows(from, p.query_stride[2], rows, p.width, p.scale, w.query);
  }

  // Masked scores of `rows` queries against the first `limit_of_block` keys. Returns how many columns of every row are
  // set, a multiple of W, −∞ where there is no key to read.
  int bring_scores(Workspace& w, int first, int rows, int end) const {
    const int columns = (int)rounded_up(end, W);
    multiply_packed(rows, rounded_up(end, TILE_COLUMNS), p.width, w.query, w.turned, w.scores);
    for (int r = 0; r < rows; r++) {
      float* z = w.scores.row(r);
      const int i = first + r, own = limit_of_row(i) < end ? limit_of_row(i) : end;
      if (p.bias) {
        const float* bias =
            p.bias + b * p.bias_stride[0] + h * p.bias_stride[1] + i * p.bias_stride[2];
        const int64_t step = p.bias_stride[3];
        for (int j = 0; j < own; j++) z[j] += bias[j * step];
      }
      if (holes) {
        const uint8_t* mask = mask_row(i);
        const int64_t step = p.allowed_stride[3];
        if (step == 1)
          for (int j = 0; j < own; j++) z[j] = mask[j] ? z[j] : -INF;
        else
          for (int j = 0; j < own; j++) z[j] = mask[j * step] ? z[j] : -INF;
      }
      for (int j = own; j < columns; j++) z[j] = -INF;
      for (int j = 0, start = start_of_row(i); j < start && j < columns; j++) z[j] = -INF;
    }
    return columns;
  }
};

// Packs the entries of p[0..n) that are not 0.
static inline int pack_row(const float* p, int n, float* values, int* index) {
  int count = 0;
  I place = lanes();
  for (int j = 0; j < n; j += W) {
    V weight = load_part(p + j, n - j, 0.0f);
    unsigned bits = not_below(weight, V{});
    store_packed(values + count, bits, weight);
    store_packed(index + count, bits, place);
    count += __builtin_popcount(bits);
    place += W;
  }
  return count;
}

// Dropout as a function of (seed, row, key), so that the backward need not be told: factors 0 or 1/(1 − rate).
struct Dropout {
  float rate;
  uint64_t seed;

  static uint64_t mixed(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
  }
  static U mixed(U x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
  }
  // x[c] *= factor of key index[c], or of key c where index is null.
  void apply(int64_t row, const int* index, int count, float* x) const {
    const uint64_t key = mixed(seed + mixed((uint64_t)row));
    const V scale = all(rate < 1.0f ? 1.0f / (1.0f - rate) : 0.0f);
    const I threshold = I{} + (int32_t)(rate * 16777216.0f);
    I place = lanes();
    for (int c = 0; c < count; c += W) {
      if (index)
        for (int l = 0; l < W; l++) place[l] = c + l < count ? index[c + l] : 0;
      U drawn = mixed(mixed((U)place + (uint32_t)key) ^ (uint32_t)(key >> 32));
      V factor = (I)(drawn >> 8) >= threshold ? scale : V{};
      store_part(x + c, count - c, load_part(x + c, count - c, 0.0f) * factor);
      if (!index) place += W;
    }
  }
};

// Sums over the packed keys of one row, N vectors of the rows of K or V at a time.
constexpr int MOST_VECTORS = W == 16 ? 8 : 4;

#define IN_PARTS(width, call)                                       \
  for (int64_t at = 0, left; (left = (width) / W - at / W) > 0;) {  \
    if (MOST_VECTORS >= 8 && left >= 8) { call(8); at += 8 * W; }   \
    else if (left >= 4) { call(4); at += 4 * W; }                   \
    else if (left >= 2) { call(2); at += 2 * W; }                   \
    else { call(1); at += W; }                                      \
  }

// out = Σ_c weight_c rows[index_c]
template <int N>
static void sum_rows(const float* weights, const int* index, int count, const float* rows, int64_t stride, float* out) {
  V even[N] = {}, odd[N] = {};
  int c = 0;
  for (; c + 2 <= count; c += 2) {
    const float *first = rows + index[c] * stride, *second = rows + index[c + 1] * stride;
    for (int n = 0; n < N; n++) {
      even[n] += weights[c] * load(first + n * W);
      odd[n] += weights[c + 1] * load(second + n * W);
    }
  }
  if (c < count)
    for (int n = 0; n < N; n++) even[n] += weights[c] * load(rows + index[c] * stride + n * W);
  for (int n = 0; n < N; n++) store(out + n * W, even[n] + odd[n]);
}
