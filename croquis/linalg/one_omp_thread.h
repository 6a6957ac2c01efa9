// For the files of this module that call oneDNN.
#pragma once

// Of OpenMP only the thread count is needed; omp.h is not there with every compiler.
extern "C" {
int omp_get_max_threads(void);
void omp_set_num_threads(int);
}

namespace croquis::linalg {

// While it lives, this thread's calls into oneDNN run on this thread alone.
class OneOmpThread {
 public:
  OneOmpThread() : before_(omp_get_max_threads()) {
    if (before_ != 1) omp_set_num_threads(1);
  }
  ~OneOmpThread() {
    if (before_ != 1) omp_set_num_threads(before_);
  }
  OneOmpThread(const OneOmpThread&) = delete;
  OneOmpThread& operator=(const OneOmpThread&) = delete;

 private:
  int before_;
};

}  // namespace croquis::linalg
