// Rows that are walked together. A recurrence along a row is a chain of dependent steps; one row's step fills the wait for
// another's. What is carried along a row is float64: in float32 a factor near 1, applied two thousand times, loses 1e-4.
#pragma once
#include "parallel.h"
#include "vector.h"

constexpr int GROUP = 4;
constexpr int MARGIN = 16;  // of room on both sides of a row; at least W and GROUP

// GROUP rows of n numbers each.
template <class T>
struct Rows {
  size_t place;
  int64_t width;
  T* base = nullptr;

  Rows(Carver& room, int n) : width((n + 2 * MARGIN + 15) / 16 * 16) { place = room.reserve<T>(GROUP * width); }
  // All 0 then.
  void open(const Carver& room) {
    base = room.at<T>(place) + MARGIN;
    memset(base - MARGIN, 0, GROUP * width * sizeof(T));
  }
  T* operator[](int row) const { return base + row * width; }
};
