// The training step in native code: what `training/native_step.py` calls. Rows, then matrices, are divided between
// threads, each of which sums its own gradient.
#include <atomic>
#include <thread>

#include "optimizers.h"
#include "row_gradient.h"

namespace training {
namespace {

template <typename Work>
void on_threads(int threads, const Work& work) {
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back([&work, i] { work(i); });
  work(0);
  for (auto& other : others) other.join();
}

// Buffers of one thread, kept between steps.
struct Worker {
  std::unique_ptr<RowGradient> rows;
  std::vector<std::vector<float>> gradients;
  std::vector<float*> pointers;
  std::vector<float> direction;
  Orthogonalizer orthogonalizer;
};

}  // namespace

class Trainer {
 public:
  Trainer(const Shape& s, int length, int threads) : s_(s), length_(length), workers_(threads) {
    for (auto& worker : workers_) {
      worker.rows = std::make_unique<RowGradient>(s, length);
      for (int p = 0; p < s.parameters(); ++p) worker.gradients.emplace_back(size_of(s, p).count());
      for (auto& gradient : worker.gradients) worker.pointers.push_back(gradient.data());
    }
  }

  // The mean loss; the gradient is left in the first worker.
  double gradient(const float* const* weights, const int32_t* tokens, const float* target_weights, int rows) {
    const PackedWeights packed(s_, weights);
    double total = 0;
    for (int64_t i = 0; i < int64_t{rows} * length_; ++i) total += target_weights[i];
    const int threads = int(workers_.size());
    std::vector<double> losses(workers_.size());
    on_threads(threads, [&](int w) {
      Worker& worker = workers_[w];
      for (auto& gradient : worker.gradients) std::fill(gradient.begin(), gradient.end(), 0.f);
      for (int row = w; row < rows; row += threads) {  // fixed, so that the sums are too
        losses[w] += worker.rows->add(packed, weights, worker.pointers.data(), tokens + ptrdiff_t{row} * (length_ + 1),
                                      target_weights + ptrdiff_t{row} * length_, length_, float(1 / total));
      }
    });
    double loss = losses[0];
    for (size_t w = 1; w < workers_.size(); ++w) {
      loss += losses[w];
      for (int p = 0; p < s_.parameters(); ++p) {
        float *to = workers_[0].pointers[p], *from = workers_[w].pointers[p];
        for (int64_t i = 0; i < size_of(s_, p).count(); i += kLanes) store(to + i, load(to + i) + load(from + i));
      }
    }
    return loss;
  }

  void update(float* const* weights, float* const* first, float* const* second, int step, float muon_rate,
              float adam_rate) {
    std::atomic<int> next{0};
    on_threads(int(workers_.size()), [&](int w) {
      for (int p; (p = next++) < s_.parameters();) {
        const Size size = size_of(s_, p);
        const float* gradient = workers_[0].pointers[p];
        if (!is_matrix(s_, p)) {
          adam_update(weights[p], gradient, first[p], second[p], size.count(), step, adam_rate);
          continue;
        }
        const int parts = (p - 1) % kParts == kQkv ? 3 : 1;  // Q, K and V are matrices of their own
        for (int i = 0; i < parts; ++i) {
          const int64_t at = size.count() / parts * i;
          muon_update(weights[p] + at, gradient + at, first[p] + at, size.rows / parts, size.columns, muon_rate,
                      &workers_[w].direction, &workers_[w].orthogonalizer);
        }
      }
    });
  }

  const float* gradient_of(int parameter) const { return workers_[0].pointers[parameter]; }

 private:
  Shape s_;
  int length_;
  std::vector<Worker> workers_;
};

}  // namespace training

extern "C" {

using training::Trainer;

void* trainer_open(const training::Shape* shape, int length, int threads) {
  return new Trainer(*shape, length, threads);
}

void trainer_close(void* trainer) { delete static_cast<Trainer*>(trainer); }

double trainer_gradient(void* trainer, const float* const* weights, const int32_t* tokens, const float* target_weights,
                        int rows) {
  return static_cast<Trainer*>(trainer)->gradient(weights, tokens, target_weights, rows);
}

const float* trainer_gradient_of(void* trainer, int parameter) {
  return static_cast<Trainer*>(trainer)->gradient_of(parameter);
}

void trainer_update(void* trainer, float* const* weights, float* const* first, float* const* second, int step,
                    float muon_rate, float adam_rate) {
  static_cast<Trainer*>(trainer)->update(weights, first, second, step, muon_rate, adam_rate);
}
}
