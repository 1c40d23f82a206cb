// Rows that are walked together. A recurrence along a row is a chain of dependent steps; one row's step fills the wait for
// another's.
#pragma once
#include "parallel.h"
#include "vector.h"

constexpr int GROUP = 4;

// GROUP rows of n floats each, with MARGIN of room on both sides.
constexpr int MARGIN = W > GROUP ? W : GROUP;

struct Rows {
  size_t place;
  int64_t width;
  float* base = nullptr;

  Rows(Carver& room, int n) : width((n + 2 * MARGIN + W - 1) / W * W) { place = room.reserve<float>(GROUP * width); }
  // All 0 then.
  void open(const Carver& room) {
    base = room.at<float>(place) + MARGIN;
    memset(base - MARGIN, 0, GROUP * width * sizeof(float));
  }
  float* operator[](int row) const { return base + row * width; }
};
