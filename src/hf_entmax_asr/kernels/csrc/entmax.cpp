// α-entmax of many rows, forward and backward (hf_entmax_asr.model.entmax is the specification).
#include "entmax_row.h"
#include "parallel.h"

constexpr int MOST_DIMS = 6;

// Where each row finds its part of the mask and its α, by the leading sizes; strides count elements and may be 0.
struct Rows {
  int dims;
  int64_t size[MOST_DIMS], mask_stride[MOST_DIMS], alpha_stride[MOST_DIMS];
};

// Goes from row to row.
struct Walk {
  const Rows& rows;
  int64_t index[MOST_DIMS], mask = 0, alpha = 0;

  Walk(const Rows& r, int64_t row) : rows(r) {
    for (int d = r.dims - 1; d >= 0; d--) {
      index[d] = row % r.size[d];
      row /= r.size[d];
      mask += index[d] * r.mask_stride[d];
      alpha += index[d] * r.alpha_stride[d];
    }
  }
  void step() {
    for (int d = rows.dims - 1; d >= 0; d--) {
      mask += rows.mask_stride[d];
      alpha += rows.alpha_stride[d];
      if (++index[d] < rows.size[d]) return;
      mask -= rows.size[d] * rows.mask_stride[d];
      alpha -= rows.size[d] * rows.alpha_stride[d];
      index[d] = 0;
    }
  }
};

constexpr int64_t ROWS_PER_TASK = 16;

// Sets a row to 0 and asks for the memory of the next.
static void clear(float* row, int n) {
  for (int j = 0; j < n; j += W) {
    __builtin_prefetch(row + n + j, 1);
    store_part(row + j, n - j, V{});
  }
}

template <Kind K>
static void forward_row(const float* z, float* p, int n, float eps, float* values, int* index) {
  for (int j = 0; j < n; j += W) __builtin_prefetch(z + n + j);
  Support found = find_support<K>(z, n, eps, values, index);
  if (found.count < 0) {
    weigh<K>(z, n, found.top, found.t, eps, p, p);
    return;
  }
  float* weights = values + n + 2 * W;
  if (found.count) weigh<K>(values, found.count, 0.0f, found.t, eps, weights, weights);
  clear(p, n);
  for (int c = 0; c < found.count; c++) p[index[c]] = weights[c];
}

template <Kind K>
static float backward_row(const float* p, const float* g, float* dz, int n, float eps, float* values, int* index,
                          bool with_alpha) {
  int count = 0;
  I place = lanes();
  for (int j = 0; j < n && count <= n / 2; j += W) {
    V weight = load_part(p + j, n - j, 0.0f);
    unsigned bits = not_below(weight, V{});
    store_packed(values + count, bits, weight);
    store_packed(index + count, bits, place);
    count += __builtin_popcount(bits);
    place += W;
    // The next row's: few entries of g are read, in leaps that the processor cannot foresee.
    __builtin_prefetch(g + n + j);
  }
  if (count > n / 2)
    return with_alpha ? row_backward<K, true>(p, g, dz, n, eps) : row_backward<K, false>(p, g, dz, n, eps);
  float *some = values + n + 2 * W, *d_some = some + n + 2 * W;  // of g and dz
  for (int c = 0; c < count; c++) some[c] = g[index[c]];
  float d_alpha = with_alpha ? row_backward<K, true>(values, some, d_some, count, eps)
                             : row_backward<K, false>(values, some, d_some, count, eps);
  clear(dz, n);
  for (int c = 0; c < count; c++) dz[index[c]] = d_some[c];
  return d_alpha;
}

extern "C" {

// z, p: (rows, n) contiguous. mask: bytes, or null; along a row its stride is 1. alpha: ε is alpha − 1, in double.
// Returns 0, or 1 when there was no memory.
int entmax_forward(const float* z, const uint8_t* mask, const double* alpha, float* p, int64_t rows, int n,
                   const Rows* where, int threads, Launch launch) {
  int64_t tasks = (rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK;
  return !run_tasks(tasks, {threads, launch}, [=](auto next) {
    Carver room;
    size_t values = room.reserve<float>(2 * n + 4 * W), index = room.reserve<int>(n + 2 * W);
    size_t copy = room.reserve<float>(n);
    if (!room.open()) return false;
    for (int64_t task; (task = next()) >= 0;) {
      Walk at(*where, task * ROWS_PER_TASK);
      for (int64_t row = task * ROWS_PER_TASK; row < rows && row < (task + 1) * ROWS_PER_TASK; row++, at.step()) {
        const float* scores = z + row * n;
        if (mask) {
          float* masked = room.at<float>(copy);
          for (int j = 0; j < n; j++) masked[j] = mask[at.mask + j] ? scores[j] : -INF;
          scores = masked;
        }
        const float eps = (float)(alpha[at.alpha] - 1.0);
#define CALL(K) forward_row<K>(scores, p + row * n, n, eps, room.at<float>(values), room.at<int>(index))
        FOR_KIND(eps, CALL)
#undef CALL
      }
    }
    return true;
  });
}

// p, g, dz: (rows, n) contiguous; d_alpha: (rows), or null.
int entmax_backward(const float* p, const float* g, const double* alpha, float* dz, float* d_alpha, int64_t rows, int n,
                    const Rows* where, int threads, Launch launch) {
  int64_t tasks = (rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK;
  return !run_tasks(tasks, {threads, launch}, [=](auto next) {
    Carver room;
    size_t values = room.reserve<float>(3 * n + 6 * W), index = room.reserve<int>(n + 2 * W);
    if (!room.open()) return false;
    for (int64_t task; (task = next()) >= 0;) {
      Walk at(*where, task * ROWS_PER_TASK);
      for (int64_t row = task * ROWS_PER_TASK; row < rows && row < (task + 1) * ROWS_PER_TASK; row++, at.step()) {
        const float eps = (float)(alpha[at.alpha] - 1.0);
        float sum = 0.0f;
#define CALL(K)                                                                                       \
  sum = backward_row<K>(p + row * n, g + row * n, dz + row * n, n, eps, room.at<float>(values), \
                        room.at<int>(index), d_alpha != nullptr)
        FOR_KIND(eps, CALL)
#undef CALL
        if (d_alpha) d_alpha[row] = sum;
      }
    }
    return true;
  });
}
}
