// Hard reading of monotonic heads (hf_entmax_asr.model.reading is the specification): each head walks from where it
// stands to where it stops, and only there are energies computed.
#include <math.h>

#include "parallel.h"
#include "vector.h"

struct Reading {
  int32_t batch, heads, targets, positions, width, value_width;
  int32_t cumulative;
  double limit;  // from which an energy fires; cumulative: to which Π(1 − σ(e)) falls, its logarithm
  const float *query, *key, *value;
  int64_t query_stride[3], key_stride[3], value_stride[3];  // B, H, row; that of the last axis is 1
  const float* bias;                                        // (H)
  const int64_t* start;                                     // (B, H), or null: 0
  const uint8_t* mask;                                      // (B, S), or null
  float* context;                                           // (B, H, U, E), strides below
  int64_t context_stride[3];
  int64_t* boundary;  // (B, H, U)
};

static float dot(const float* a, const float* b, int n) {
  V total = V{};
  for (int j = 0; j < n; j += W) total += load_part(a + j, n - j, 0.0f) * load_part(b + j, n - j, 0.0f);
  return sum(total);
}

// log(1 − σ(e))
static double log_pass(double e) { return -(e > 0 ? e : 0) - log1p(exp(e > 0 ? -e : e)); }

static void read_head(const Reading& p, int b, int h) {
  const float* key = p.key + b * p.key_stride[0] + h * p.key_stride[1];
  const float* value = p.value + b * p.value_stride[0] + h * p.value_stride[1];
  const uint8_t* mask = p.mask ? p.mask + (int64_t)b * p.positions : nullptr;
  int64_t last = p.positions - 1;
  if (mask) {
    while (last > 0 && !mask[last]) last--;
  }
  int64_t at = p.start ? p.start[b * p.heads + h] : 0;
  for (int i = 0; i < p.targets; i++) {
    const float* query = p.query + b * p.query_stride[0] + h * p.query_stride[1] + i * p.query_stride[2];
    double passed = 0.0;  // log Π(1 − σ(e)) since the last stop
    int64_t j = at;
    for (; j < last; j++) {
      if (mask && !mask[j]) continue;
      const float energy = dot(query, key + j * p.key_stride[2], p.width) + p.bias[h];
      if (p.cumulative) {
        passed += log_pass(energy);
        if (passed <= p.limit) break;
      } else if (energy >= (float)p.limit) {
        break;
      }
    }
    at = j;  // the last real position stops everybody; nobody goes back to it
    p.boundary[((int64_t)b * p.heads + h) * p.targets + i] = at;
    memcpy(p.context + b * p.context_stride[0] + h * p.context_stride[1] + i * p.context_stride[2],
           value + at * p.value_stride[2], p.value_width * sizeof(float));
  }
}

extern "C" int read_hard(const Reading* reading, int threads, Launch launch) {
  const Reading& p = *reading;
  // Few and short walks do not pay for waking other threads.
  const int useful = (int64_t)p.targets * p.batch < 64 ? 1 : threads;
  return !run_tasks((int64_t)p.batch * p.heads, {useful, launch}, [&p](auto next) {
    for (int64_t task; (task = next()) >= 0;) read_head(p, (int)(task / p.heads), (int)(task % p.heads));
    return true;
  });
}
