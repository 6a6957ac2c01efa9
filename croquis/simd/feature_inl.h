// The loops of the feature kernels, written in the vectors `V` of one instruction set. Included inside the anonymous
// namespace of feature_avx2.cc and feature_avx512.cc, after V, so that each keeps machine code of its own; no shared
// inline function is called here (see dense_inl.h).

using F = V::F;
constexpr int kW = V::kW;

// A row u of products: x_u x_v for v in [u, n), in whole vectors; the rest of the last one is overwritten or slack.
void SquareRows(const float* x, int64_t ldx, int64_t rows, int64_t n, int64_t u_begin, int64_t u_end, float* out,
                int64_t ldo) {
  for (int64_t r = 0; r < rows; ++r, x += ldx, out += ldo) {
    float* to = out;
    for (int64_t u = u_begin; u < u_end; to += n - u, ++u) {
      const F a = V::Set(x[u]);
      for (int64_t v = u; v < n; v += kW) V::Store(to + v - u, V::Mul(a, V::Load(x + v)));
    }
  }
}

void SquareColumns(const float* xt, int64_t ldx, int64_t columns, int64_t n, int64_t u_begin, int64_t u_end, float same,
                   float other, float* out, int64_t ldo, float* sums) {
  for (int64_t u = u_begin; u < u_end; ++u)
    for (int64_t v = u; v < n; ++v, out += ldo, ++sums) {
      const float *a = xt + u * ldx, *b = xt + v * ldx;
      const F w = V::Set(u == v ? same : other);
      F total = V::Zero();
      for (int64_t t = 0; t < columns; t += kW) {
        const F y = V::Mul(V::Mul(w, V::Load(a + t)), V::Load(b + t));
        V::Store(out + t, y);
        total = V::Add(total, y);
      }
      *sums += V::Sum(total);
    }
}

inline F EvenPower(F x, int power) {
  const F square = V::Mul(x, x);
  F y = square;
  if (power == 4) return V::Mul(square, square);
  if (power == 8) {
    y = V::Mul(square, square);
    return V::Mul(y, y);
  }
  for (int i = 2; i < power; i += 2) y = V::Mul(y, square);
  return y;
}

void EvenPowers(float* t, int64_t ld, int64_t rows, int64_t cols, int power, const int32_t* last, float* mass) {
  for (int64_t r = 0; r < rows; ++r, t += ld) {
    const int64_t n = last[r];
    F total = V::Zero();
    int64_t c = 0;
    for (; c + kW <= n; c += kW) {
      const F y = EvenPower(V::Load(t + c), power);
      V::Store(t + c, y);
      total = V::Add(total, y);
    }
    if (c < n) {
      const F y = EvenPower(V::LoadN(t + c, n - c), power);
      V::StoreN(t + c, y, n - c);
      total = V::Add(total, y);
    }
    for (c = n; c + kW <= cols; c += kW) V::Store(t + c, V::Zero());
    if (c < cols) V::StoreN(t + c, V::Zero(), cols - c);
    mass[r] += V::Sum(total);
  }
}

void Product(const float* a, const float* b, float s, int64_t n, float* out) {
  const F w = V::Set(s);
  int64_t i = 0;
  for (; i + kW <= n; i += kW) V::Store(out + i, V::Mul(V::Mul(w, V::Load(a + i)), V::Load(b + i)));
  if (i < n) V::StoreN(out + i, V::Mul(V::Mul(w, V::LoadN(a + i, n - i)), V::LoadN(b + i, n - i)), n - i);
}

void RowDots(const float* a, int64_t lda, int64_t rows, int64_t n, const float* z, float* out) {
  for (int64_t r = 0; r < rows; ++r, a += lda) {
    F s[2] = {V::Zero(), V::Zero()};
    int64_t i = 0;
    for (; i + 2 * kW <= n; i += 2 * kW) {
      s[0] = V::Fma(V::Load(a + i), V::Load(z + i), s[0]);
      s[1] = V::Fma(V::Load(a + i + kW), V::Load(z + i + kW), s[1]);
    }
    for (; i < n; i += kW) {
      const int64_t some = n - i < kW ? n - i : kW;
      s[0] = V::Fma(V::LoadN(a + i, some), V::LoadN(z + i, some), s[0]);
    }
    out[r] += V::Sum(V::Add(s[0], s[1]));
  }
}

void RowSums(const float* a, int64_t lda, int64_t rows, int64_t n, float* out) {
  for (int64_t r = 0; r < rows; ++r, a += lda) {
    F s = V::Zero();
    int64_t i = 0;
    for (; i + kW <= n; i += kW) s = V::Add(s, V::Load(a + i));
    if (i < n) s = V::Add(s, V::LoadN(a + i, n - i));
    out[r] += V::Sum(s);
  }
}

void ScanStep(float* x, float* carry, int64_t n) {
  int64_t i = 0;
  for (; i + kW <= n; i += kW) {
    const F before = V::Load(carry + i);
    V::Store(carry + i, V::Add(before, V::Load(x + i)));
    V::Store(x + i, before);
  }
  for (; i < n; ++i) {
    const float before = carry[i];
    carry[i] = before + x[i];
    x[i] = before;
  }
}

// e^x = 2^n e^r with r in [-ln 2 / 2, ln 2 / 2]; ln 2 in two pieces, so that r is exact; Taylor to r^7 (1e-8).
inline F ExpOf(F x) {
  const F low = V::Set(-87.f), y = V::Min(V::Max(x, low), V::Set(88.f));
  const F n = V::Round(V::Mul(y, V::Set(1.44269504f)));
  const F r = V::Fma(n, V::Set(2.12194440e-4f), V::Fma(n, V::Set(-0.693359375f), y));
  F p = V::Set(1.f / 5040);
  p = V::Fma(p, r, V::Set(1.f / 720));
  p = V::Fma(p, r, V::Set(1.f / 120));
  p = V::Fma(p, r, V::Set(1.f / 24));
  p = V::Fma(p, r, V::Set(1.f / 6));
  p = V::Fma(p, r, V::Set(.5f));
  p = V::Fma(p, r, V::Set(1.f));
  p = V::Fma(p, r, V::Set(1.f));
  return V::ZeroBelow(V::Raise(p, n), x, low);
}

void Exp(float* x, int64_t n) {
  int64_t i = 0;
  for (; i + kW <= n; i += kW) V::Store(x + i, ExpOf(V::Load(x + i)));
  if (i < n) V::StoreN(x + i, ExpOf(V::LoadN(x + i, n - i)), n - i);
}

void LayerNorm(float* x, int64_t rows, int64_t n, float eps, float factor) {
  const int64_t whole = n / kW * kW;
  for (int64_t r = 0; r < rows; ++r, x += n) {
    F sum = V::Zero(), squares = V::Zero();
    for (int64_t i = 0; i < whole; i += kW) sum = V::Add(sum, V::Load(x + i));
    if (whole < n) sum = V::Add(sum, V::LoadN(x + whole, n - whole));
    const float mean = V::Sum(sum) / float(n);
    for (int64_t i = 0; i < whole; i += kW) {
      const F d = V::Sub(V::Load(x + i), V::Set(mean));
      squares = V::Fma(d, d, squares);
    }
    float rest = 0;
    for (int64_t i = whole; i < n; ++i) rest += (x[i] - mean) * (x[i] - mean);
    const float scale = factor / __builtin_sqrtf((V::Sum(squares) + rest) / float(n) + eps);
    for (int64_t i = 0; i < whole; i += kW)
      V::Store(x + i, V::Mul(V::Sub(V::Load(x + i), V::Set(mean)), V::Set(scale)));
    for (int64_t i = whole; i < n; ++i) x[i] = (x[i] - mean) * scale;
  }
}

void RankOne(const float* u, int64_t features, const float* v, int64_t n, float* a) {
  for (int64_t f = 0; f < features; ++f, a += n) {
    const F w = V::Set(u[f]);
    int64_t i = 0;
    for (; i + kW <= n; i += kW) V::Store(a + i, V::Fma(w, V::Load(v + i), V::Load(a + i)));
    if (i < n) V::StoreN(a + i, V::Fma(w, V::LoadN(v + i, n - i), V::LoadN(a + i, n - i)), n - i);
  }
}

// Four vectors of columns at a time stay in registers while all features pass.
void TripleSums(const float* u, int64_t features, const float* a, const float* b, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + 4 * kW <= n; i += 4 * kW) {
    F s[4] = {V::Load(out + i), V::Load(out + i + kW), V::Load(out + i + 2 * kW), V::Load(out + i + 3 * kW)};
    for (int64_t f = 0; f < features; ++f) {
      const F w = V::Set(u[f]);
      const float *x = a + f * n + i, *y = b + f * n + i;
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) s[j] = V::Fma(V::Mul(w, V::Load(x + j * kW)), V::Load(y + j * kW), s[j]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) V::Store(out + i + j * kW, s[j]);
  }
  for (; i < n; i += kW) {
    const int64_t some = n - i < kW ? n - i : kW;
    F s = V::LoadN(out + i, some);
    for (int64_t f = 0; f < features; ++f)
      s = V::Fma(V::Mul(V::Set(u[f]), V::LoadN(a + f * n + i, some)), V::LoadN(b + f * n + i, some), s);
    V::StoreN(out + i, s, some);
  }
}
