// Errors as values: Result<T> is either a T or an Error, and Status is Result<void>.
#pragma once

#include <concepts>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace croquis {

// What kind of failure it was. The command line maps each to an exit code (docs/cli.md).
enum class Code : uint8_t {
  kInvalidArgument = 1,  // the caller asked for something that makes no sense
  kNotFound,             // no such file, method, tensor
  kOutOfRange,           // a value outside its stated range
  kUnsupported,          // understood, but not something this build can do
  kCorrupt,              // a file that breaks its own format
  kIo,                   // the operating system refused
  kNoMemory,             // a size that does not fit, found before it was taken
  kNumeric,              // numbers that are not finite, or too large for their type
  kInternal              // a bug in Croquis
};

struct Error {
  Code code;
  std::string message;  // what was wanted, what was got, what to do
};

// The subset of std::expected<T, Error> that this project uses, under the same names, so that it can
// become an alias when the toolchain moves to C++23. Reading the wrong side is a programming error.
template <class T>
class [[nodiscard]] Result {
 public:
  template <std::convertible_to<T> U = T>
  requires(!std::same_as<std::remove_cvref_t<U>, Error> && !std::same_as<std::remove_cvref_t<U>, Result>)
      // NOLINTNEXTLINE(bugprone-forwarding-reference-overload): a Result is not convertible to its T.
      Result(U&& value)
      : v_(std::in_place_index<0>, std::forward<U>(value)) {}
  Result(Error error) : v_(std::in_place_index<1>, std::move(error)) {}

  bool has_value() const noexcept { return v_.index() == 0; }
  explicit operator bool() const noexcept { return has_value(); }
  T& operator*() & noexcept { return *std::get_if<0>(&v_); }
  const T& operator*() const& noexcept { return *std::get_if<0>(&v_); }
  T&& operator*() && noexcept { return std::move(*std::get_if<0>(&v_)); }
  T* operator->() noexcept { return std::get_if<0>(&v_); }
  const T* operator->() const noexcept { return std::get_if<0>(&v_); }
  const Error& error() const& noexcept { return *std::get_if<1>(&v_); }
  Error&& error() && noexcept { return std::move(*std::get_if<1>(&v_)); }

 private:
  std::variant<T, Error> v_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : e_(std::move(error)) {}
  bool has_value() const noexcept { return !e_.has_value(); }
  explicit operator bool() const noexcept { return has_value(); }
  const Error& error() const& noexcept { return *e_; }
  Error&& error() && noexcept { return std::move(*e_); }

 private:
  std::optional<Error> e_;
};

using Status = Result<void>;

inline Error InvalidArgument(std::string m) { return {Code::kInvalidArgument, std::move(m)}; }
inline Error NotFound(std::string m) { return {Code::kNotFound, std::move(m)}; }
inline Error OutOfRange(std::string m) { return {Code::kOutOfRange, std::move(m)}; }
inline Error Unsupported(std::string m) { return {Code::kUnsupported, std::move(m)}; }
inline Error Corrupt(std::string m) { return {Code::kCorrupt, std::move(m)}; }
inline Error IoError(std::string m) { return {Code::kIo, std::move(m)}; }
inline Error NoMemory(std::string m) { return {Code::kNoMemory, std::move(m)}; }
inline Error Numeric(std::string m) { return {Code::kNumeric, std::move(m)}; }
inline Error Internal(std::string m) { return {Code::kInternal, std::move(m)}; }

}  // namespace croquis

#define CROQUIS_CAT2(a, b) a##b
#define CROQUIS_CAT(a, b) CROQUIS_CAT2(a, b)
#define CROQUIS_TRY_IMPL(tmp, decl, expr)  \
  auto tmp = (expr);                       \
  if (!tmp) return std::move(tmp).error(); \
  decl = *std::move(tmp)
// CROQUIS_TRY(auto x, F()): binds the value or returns the error to the caller.
#define CROQUIS_TRY(decl, expr) CROQUIS_TRY_IMPL(CROQUIS_CAT(croquis_try_, __LINE__), decl, expr)
// CROQUIS_CHECK_OK(F()): returns the error of a Status to the caller.
#define CROQUIS_CHECK_OK(expr) \
  if (auto croquis_status = (expr); !croquis_status) return std::move(croquis_status).error()
