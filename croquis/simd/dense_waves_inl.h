// Sums of waves, for the centring correction. Included after dense_inl.h, inside the same anonymous namespace.

constexpr int64_t kHalf = 32;                   // numbers on either side of the middle
constexpr int kWaveVectors = kW == 16 ? 2 : 1;  // of A and of B side by side, for four rows: half the registers

// Numbers [at, at + kWaveVectors * kW) on either side, of R <= 4 rows.
template <int R>
inline void AddWaveRows(const float* z, const float* still, const float* waves, int64_t n, int64_t at, float* x) {
  F even[R][kWaveVectors], odd[R][kWaveVectors];
#pragma GCC unroll 8
  for (int i = 0; i < R * kWaveVectors; ++i) {
    even[i / kWaveVectors][i % kWaveVectors] = V::Set(still[i / kWaveVectors]);
    odd[i / kWaveVectors][i % kWaveVectors] = V::Zero();
  }
  for (int64_t s = 0; s < n; ++s) {
    const float* const wave = waves + s * 2 * kHalf + at;
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const F re = V::Set(z[r * 2 * n + s]), im = V::Set(z[r * 2 * n + n + s]);
#pragma GCC unroll 2
      for (int j = 0; j < kWaveVectors; ++j) {
        even[r][j] = V::Fma(re, V::Load(wave + j * kW), even[r][j]);
        odd[r][j] = V::Fma(im, V::Load(wave + kHalf + j * kW), odd[r][j]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < kWaveVectors; ++j) {
      float* const above = x + r * 2 * kHalf + kHalf + at + j * kW;
      float* const below = x + r * 2 * kHalf + kHalf - at - (j + 1) * kW;
      V::Store(above, V::Add(V::Load(above), V::Sub(even[r][j], odd[r][j])));
      V::Store(below, V::Add(V::Load(below), V::Reverse(V::Add(even[r][j], odd[r][j]))));
    }
}

void AddWaves(const float* z, const float* still, int64_t rows, const float* waves, int64_t n, float* x) {
  for (int64_t r = 0; r < rows; r += 4)
    WithConstant<4>(Min(rows - r, 4), [&]<int R>() {
      for (int64_t at = 0; at < kHalf; at += kWaveVectors * kW)
        AddWaveRows<R>(z + r * 2 * n, still + r, waves, n, at, x + r * 2 * kHalf);
    });
}
