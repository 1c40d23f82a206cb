// Soft attention over an expected alignment, forward and backward (hf_entmax_asr.model.alignment is the specification).
#include "rows.h"

constexpr float FAR = -1e30f;  // stands for −∞ among the scores, so that differences of them are defined

static void copy_scores(const float* u, const uint8_t* mask, int n, float* out) {
  for (int j = 0; j < n; j++) out[j] = (mask && !mask[j]) || u[j] < FAR ? FAR : u[j];
}

// A window over everything before: β_j = e^(u_j) Σ_{k>=j} α_k/Z_k, Z_k = Σ_{l<=k} e^(u_l). With R_j = Z_j Σ_{k>=j} α_k/Z_k
// that is R_j = α_j + R_{j+1} Z_j/Z_{j+1}, β_j = s_j R_j, s_j = e^(u_j)/Z_j: no factor is above 1.
// Backward, C_k = C_{k−1} Z_{k−1}/Z_k + s_k g_k is ∂/∂α_k, and ∂/∂u_j = s_j (R_j g_j − R'_j), R' made from α C as R from α.
class Lookback {
 public:
  Lookback(int n, int)
      : n_(n), u_(room_, n), top_(room_, n), rise_(room_, n), fade_(room_, n), share_(room_, n), shrink_(room_, n),
        rest_(room_, n), other_(room_, n), mean_(room_, n) {}

  bool open() {
    if (!room_.open()) return false;
    u_.open(room_), top_.open(room_), rise_.open(room_), fade_.open(room_), share_.open(room_), shrink_.open(room_);
    rest_.open(room_), other_.open(room_), mean_.open(room_);
    return true;
  }

  void forward(const float* alpha, const float* scores, const uint8_t* mask, float* beta, int rows) {
    prepare(alpha, scores, mask, rows);
    for (int r = 0; r < rows; r++)
      for (int j = 0; j < n_; j++) beta[r * (int64_t)n_ + j] = (float)(share_[r][j] * rest_[r][j]);
  }

  void backward(const float* alpha, const float* scores, const uint8_t* mask, const float* grad, float* d_alpha,
                float* d_scores, int rows) {
    prepare(alpha, scores, mask, rows);
    double c[GROUP] = {};
    for (int j = 0; j < n_; j++)
      for (int r = 0; r < GROUP; r++)
        mean_[r][j] = c[r] = (j ? c[r] * shrink_[r][j - 1] : 0.0) + share_[r][j] * grad[(r < rows ? r : 0) * (int64_t)n_ + j];
    for (int r = 0; r < rows; r++)
      for (int j = 0; j < n_; j++) {
        const int64_t at = r * (int64_t)n_ + j;
        d_alpha[at] = (float)mean_[r][j];
        rest_[r][j] *= grad[at];
        other_[r][j] = alpha[at] * mean_[r][j];
      }
    sum_ahead(other_, mean_);
    for (int r = 0; r < rows; r++)
      for (int j = 0; j < n_; j++)
        d_scores[r * (int64_t)n_ + j] = u_[r][j] > FAR ? (float)(share_[r][j] * (rest_[r][j] - mean_[r][j])) : 0.0f;
  }

 private:
  void prepare(const float* alpha, const float* scores, const uint8_t* mask, int rows) {
    for (int r = 0; r < GROUP; r++) {
      const int64_t row = (r < rows ? r : 0) * (int64_t)n_;
      copy_scores(scores + row, mask, n_, u_[r]);
      for (int j = 0; j < n_; j++) other_[r][j] = alpha[row + j];
    }
    weigh();
    sum_ahead(other_, rest_);
  }

  // s_j, and Z_j/Z_{j+1}. Sums are of e^(u − top), top_j the largest score up to j; rest_ holds them meanwhile.
  void weigh() {
    const Rows<double>& total = rest_;
    float best[GROUP];
    double z[GROUP] = {};
    for (int r = 0; r < GROUP; r++) best[r] = u_[r][0];
    for (int j = 0; j < n_; j++)
      for (int r = 0; r < GROUP; r++) top_[r][j] = best[r] = u_[r][j] > best[r] ? u_[r][j] : best[r];
    for (int r = 0; r < GROUP; r++) {
      top_[r][n_] = top_[r][n_ - 1];
      for (int j = 0; j < n_; j += W) {
        store(rise_[r] + j, exp(load(u_[r] + j) - load(top_[r] + j)));
        store(fade_[r] + j, exp(load(top_[r] + j) - load(top_[r] + j + 1)));
      }
    }
    for (int j = 0; j < n_; j++)
      for (int r = 0; r < GROUP; r++) total[r][j] = z[r] = (j ? z[r] * fade_[r][j - 1] : 0.0) + rise_[r][j];
    for (int r = 0; r < GROUP; r++) {
      total[r][n_] = total[r][n_ - 1];
      for (int j = 0; j < n_; j++) {
        share_[r][j] = rise_[r][j] / total[r][j];
        shrink_[r][j] = fade_[r][j] * total[r][j] / total[r][j + 1];
      }
    }
  }

  // R from α.
  void sum_ahead(const Rows<double>& alpha, const Rows<double>& out) {
    double sum[GROUP] = {};
    for (int j = n_ - 1; j >= 0; j--)
      for (int r = 0; r < GROUP; r++) out[r][j] = sum[r] = (j + 1 < n_ ? sum[r] * shrink_[r][j] : 0.0) + alpha[r][j];
  }

  Carver room_;
  int n_;
  Rows<float> u_, top_, rise_, fade_;
  Rows<double> share_, shrink_, rest_, other_, mean_;
};

// A window of `width` positions: β_j = Σ_{k=j}^{j+w−1} α_k e^(u_j − M_k)/Z_k with M_k and Z_k the maximum and the sum of
// e^(u − M_k) over the window that ends at k. ∂/∂α_k is the window's mean C_k of g, ∂/∂u_j = Σ_k α_k e^(u_j − M_k)/Z_k (g_j − C_k).
class Chunkwise {
 public:
  Chunkwise(int n, int width) : n_(n), width_(width), margin_((width + W - 1) / W * W) {
    for (size_t& place : places_) place = room_.reserve<float>(n + 2 * margin_ + 2 * W);
  }

  bool open() {
    if (!room_.open()) return false;
    // Outside the row: scores −∞, maxima +∞, the rest 0, so that nothing comes from there.
    const float outside[5] = {-INF, INF, 0.0f, 0.0f, 0.0f};
    float** parts[5] = {&u_, &top_, &scaled_, &mean_, &grad_};
    for (int p = 0; p < 5; p++) {
      float* base = room_.at<float>(places_[p]);
      for (int i = 0; i < n_ + 2 * margin_ + 2 * W; i++) base[i] = outside[p];
      *parts[p] = base + margin_;
    }
    return true;
  }

  void forward(const float* alpha, const float* scores, const uint8_t* mask, float* beta, int rows) {
    for (int64_t row = 0; row < rows * (int64_t)n_; row += n_) {
      copy_scores(scores + row, mask, n_, u_);
      weigh(alpha + row, nullptr);
      for (int j = 0; j < n_; j += W) {
        V u = load(u_ + j), total = V{};
        for (int k = j; k < j + width_; k++) total += exp(u - load(top_ + k)) * load(scaled_ + k);
        store_part(beta + row + j, n_ - j, total);
      }
    }
  }

  void backward(const float* alpha, const float* scores, const uint8_t* mask, const float* grad, float* d_alpha,
                float* d_scores, int rows) {
    for (int64_t row = 0; row < rows * (int64_t)n_; row += n_) {
      copy_scores(scores + row, mask, n_, u_);
      weigh(alpha + row, grad + row);
      memcpy(d_alpha + row, mean_, n_ * sizeof(float));
      for (int j = 0; j < n_; j += W) {
        V u = load(u_ + j), g = load(grad_ + j), total = V{};
        for (int k = j; k < j + width_; k++) total += exp(u - load(top_ + k)) * load(scaled_ + k) * (g - load(mean_ + k));
        store_part(d_scores + row + j, n_ - j, u > FAR ? total : V{});
      }
    }
  }

 private:
  // M, α/Z, and with `grad` C.
  void weigh(const float* alpha, const float* grad) {
    if (grad) memcpy(grad_, grad, n_ * sizeof(float));
    for (int k = 0; k < n_; k += W) {
      V top = load(u_ + k), total = V{}, mean = V{};
      for (int back = 1; back < width_; back++) top = larger(load(u_ + k - back), top);
      for (int back = 0; back < width_; back++) {
        V e = exp(load(u_ + k - back) - top);
        total += e;
        if (grad) mean += e * load(grad_ + k - back);
      }
      store_part(top_ + k, n_ - k, top);
      store_part(scaled_ + k, n_ - k, load_part(alpha + k, n_ - k, 0.0f) / total);
      if (grad) store_part(mean_ + k, n_ - k, mean / total);
    }
  }

  Carver room_;
  int n_, width_, margin_;
  size_t places_[5];
  float *u_, *top_, *scaled_, *mean_, *grad_;
};

// Calls work(form, first row, rows, mask) for every group of rows of (lattices, targets).
template <class Form, class Work>
static int for_groups(int64_t lattices, int heads, int targets, int n, int width, const uint8_t* mask, Threads threads,
                      Work work) {
  return !run_tasks(lattices, threads, [=](auto next) {
    Form form(n, width);
    if (!form.open()) return false;
    for (int64_t task; (task = next()) >= 0;)
      for (int i = 0; i < targets; i += GROUP)
        work(form, (task * targets + i) * n, targets - i < GROUP ? targets - i : GROUP,
             mask ? mask + task / heads * n : nullptr);
    return true;
  });
}

extern "C" {

// alignment, scores, beta: (lattices, targets, n); mask: (lattices / heads, n) bytes, or null; width: of the window, 0 for
// everything before. Returns 0, or 1 when there was no memory.
int soft_forward(const float* alignment, const float* scores, const uint8_t* mask, float* beta, int64_t lattices,
                 int heads, int targets, int n, int width, int threads, Launch launch) {
  auto work = [=](auto& form, int64_t at, int rows, const uint8_t* own) {
    form.forward(alignment + at, scores + at, own, beta + at, rows);
  };
  return width ? for_groups<Chunkwise>(lattices, heads, targets, n, width, mask, {threads, launch}, work)
               : for_groups<Lookback>(lattices, heads, targets, n, width, mask, {threads, launch}, work);
}

int soft_backward(const float* alignment, const float* scores, const uint8_t* mask, const float* grad, float* d_alignment,
                  float* d_scores, int64_t lattices, int heads, int targets, int n, int width, int threads,
                  Launch launch) {
  auto work = [=](auto& form, int64_t at, int rows, const uint8_t* own) {
    form.backward(alignment + at, scores + at, own, grad + at, d_alignment + at, d_scores + at, rows);
  };
  return width ? for_groups<Chunkwise>(lattices, heads, targets, n, width, mask, {threads, launch}, work)
               : for_groups<Lookback>(lattices, heads, targets, n, width, mask, {threads, launch}, work);
}
}
