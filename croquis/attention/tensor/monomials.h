// Polynomials that stand for e^s in third-order attention, and the monomials they are made of.
#pragma once

#include <cstdint>
#include <vector>

namespace croquis::attention::tensor {

enum class Series : uint8_t { kTaylor, kChebyshev };

// p(s) = sum_t coefficients[t] s^t close to e^s for |s| <= largest.
struct Polynomial {
  std::vector<double> coefficients;
  // max |p(s) e^-s - 1| over |s| <= largest: exact for Taylor, whose error grows with |s|; on a grid of 4,001 points
  // for Chebyshev.
  double relative_error = 0;

  int degree() const { return int(coefficients.size()) - 1; }
  // Each weight is off by at most relative_error, hence outputs by at most this times the largest |v1 o v2|; infinite
  // where weights may be negative.
  double OutputError() const;
};

// degree 1 to 30, largest >= 0. Chebyshev: the expansion on [-largest, largest], cut off.
Polynomial ExpPolynomial(Series series, int degree, double largest);

// All monomials x^alpha with |alpha| <= degree of vectors with `dim` numbers, by degree; those of a degree are made
// from those of the degree below, each times x_v for v from its last variable on, so that runs of them are products of
// one number with a piece of x.
class Monomials {
 public:
  Monomials(int64_t dim, int degree);
  // C(dim + degree, degree), at most `limit` (then the number may be larger).
  static int64_t Count(int64_t dim, int degree, int64_t limit);

  int64_t count() const { return count_; }
  // out [count()].
  void Evaluate(const float* x, float* out) const;
  // Of every monomial, c_t t! / alpha! scale^t: with these, sum_f coefficient_f q^f a^f b^f = p(scale sum_x q_x a_x
  // b_x).
  std::vector<float> Coefficients(const Polynomial& p, double scale) const;

 private:
  struct Run {
    int64_t parent, first;  // monomials first, first + 1, .. are monomial `parent` times x_v, x_{v+1}, ..
    int32_t variable, degree;
    int64_t exponent;  // of x_v in the parent's last variable's run: how often it ends with x_v
  };
  int64_t dim_, count_ = 1;
  std::vector<Run> runs_;
};

}  // namespace croquis::attention::tensor
