// Dense products of blocks that stay in cache, and the copies that prepare them.
#pragma once
#include <utility>

#include "vector.h"

// A tile of the product is TILE_ROWS × 2 W: sums in 16 of 32 registers with AVX-512, else in 12 of 16 (8 would wait for
// each other: an addition takes four cycles, and two start in each).
constexpr int TILE_ROWS = W == 16 ? 8 : 6;
constexpr int TILE_COLUMNS = 2 * W;

static inline int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

struct Block {
  float* data;
  int64_t stride;  // from row to row

  float* row(int64_t i) const { return data + i * stride; }
};

// C[ROWS × N·W] = or += A · B over `depth`. A's element (m, k) is at m · a_row + k · a_column.
template <int ROWS, int N>
INLINE void tile(const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row, int64_t depth, float* c,
                 int64_t c_row, bool add) {
  V sum[ROWS][N] = {};
  for (int64_t k = 0; k < depth; k++) {
    V right[N];
    for (int n = 0; n < N; n++) right[n] = load(b + k * b_row + n * W);
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; m++)
      for (int n = 0; n < N; n++) sum[m][n] += a[m * a_row + k * a_column] * right[n];
  }
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; m++)
    for (int n = 0; n < N; n++) {
      float* at = c + m * c_row + n * W;
      store(at, add ? load(at) + sum[m][n] : sum[m][n]);
    }
}

template <int ROWS, int N>
static void few_rows(int rows, const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row,
                     int64_t depth, float* c, int64_t c_row, bool add) {
  if (rows == ROWS) tile<ROWS, N>(a, a_row, a_column, b, b_row, depth, c, c_row, add);
  else if constexpr (ROWS > 1) few_rows<ROWS - 1, N>(rows, a, a_row, a_column, b, b_row, depth, c, c_row, add);
}

// One strip of `N · W` columns of the product.
template <int N>
static void strip(int64_t rows, const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row,
                  int64_t depth, float* c, int64_t c_row, bool add) {
  int64_t m = 0;
  for (; m + TILE_ROWS <= rows; m += TILE_ROWS)
    tile<TILE_ROWS, N>(a + m * a_row, a_row, a_column, b, b_row, depth, c + m * c_row, c_row, add);
  if (m < rows)
    few_rows<TILE_ROWS - 1, N>((int)(rows - m), a + m * a_row, a_row, a_column, b, b_row, depth, c + m * c_row, c_row, add);
}

// C (rows × columns) = or += A · B with B (depth × columns) row by row; columns a multiple of W.
static void multiply(int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t a_row, int64_t a_column,
                     const Block& b, const Block& c, bool add) {
  int64_t n = 0;
  for (; n + TILE_COLUMNS <= columns; n += TILE_COLUMNS)
    strip<2>(rows, a, a_row, a_column, b.data + n, b.stride, depth, c.data + n, c.stride, add);
  if (n < columns) strip<1>(rows, a, a_row, a_column, b.data + n, b.stride, depth, c.data + n, c.stride, add);
}

// C (rows × columns) = A (rows × depth) · Bᵀ with Bᵀ packed by `pack_transposed`; columns a multiple of TILE_COLUMNS.
static void multiply_packed(int64_t rows, int64_t columns, int64_t depth, const Block& a, const float* packed,
                            const Block& c) {
  for (int64_t n = 0; n < columns; n += TILE_COLUMNS)
    strip<2>(rows, a.data, a.stride, 1, packed + n * depth, TILE_COLUMNS, depth, c.data + n, c.stride, false);
}

// a_0 b_0 a_1 b_1 … from lane FIRST on, which is 0 or W/2.
template <int FIRST, int... LANE>
INLINE V zip(V a, V b, std::integer_sequence<int, LANE...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, (FIRST + LANE / 2 + LANE % 2 * W)...);
#else
  return __builtin_shuffle(a, b, I{(FIRST + LANE / 2 + LANE % 2 * W)...});
#endif
}

// from (rows × columns) -> strips of TILE_COLUMNS of its rows, each column by column: out[strip][column][row in strip];
// rows beyond the last are 0. W × W numbers are turned at a time, by log W rounds of zipping the first half with the second.
static void pack_transposed(const Block& from, int rows, int columns, float* out) {
  constexpr std::make_integer_sequence<int, W> every_lane{};
  for (int first = 0; first < rows; first += W) {
    float* strip = out + (first / TILE_COLUMNS) * (int64_t)TILE_COLUMNS * columns + first % TILE_COLUMNS;
    for (int column = 0; column < columns; column += W) {
      V turn[W], next[W];
      for (int r = 0; r < W; r++)
        turn[r] = first + r < rows ? load_part(from.row(first + r) + column, columns - column, 0.0f) : V{};
      for (int round = 1; round < W; round *= 2) {
        for (int r = 0; r < W / 2; r++) {
          next[2 * r] = zip<0>(turn[r], turn[r + W / 2], every_lane);
          next[2 * r + 1] = zip<W / 2>(turn[r], turn[r + W / 2], every_lane);
        }
        for (int r = 0; r < W; r++) turn[r] = next[r];
      }
      for (int c = 0; c < W && column + c < columns; c++) store(strip + (column + c) * (int64_t)TILE_COLUMNS, turn[c]);
    }
  }
  if (rounded_up(rows, W) % TILE_COLUMNS)  // the second half of the last strip
    for (int column = 0; column < columns; column++)
      store(out + (rows / TILE_COLUMNS) * (int64_t)TILE_COLUMNS * columns + column * (int64_t)TILE_COLUMNS + W, V{});
}

// Rows of `width` floats, times `factor`, into rows padded with 0 to a multiple of W.
static void copy_rows(const float* from, int64_t stride, int rows, int width, float factor, const Block& to) {
  for (int r = 0; r < rows; r++)
    for (int d = 0; d < width; d += W) store(to.row(r) + d, load_part(from + r * stride + d, width - d, 0.0f) * factor);
}
