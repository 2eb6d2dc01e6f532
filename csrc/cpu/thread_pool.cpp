#include "thread_pool.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace worldr1 {
namespace {

// How long a thread looks for news before it sleeps. Waking a sleeper takes some 50 microseconds on a virtual machine, as long
// as many a parallel loop: the loops of one call should find the workers awake. No longer, because a spinning thread may keep
// the one it waits for off its core.
constexpr std::chrono::microseconds kSpin{50};

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Done>
bool spin_until(const Done& done) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (done()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

class Pool {
 public:
  explicit Pool(pid_t owner) : owner_(owner) {}

  pid_t owner() const { return owner_; }

  // False when another call holds the pool.
  bool run(int64_t num_tasks, int num_threads, const std::function<void(int64_t, int)>& task) {
    std::unique_lock<std::mutex> exclusive(call_mutex_, std::try_to_lock);
    if (!exclusive.owns_lock()) return false;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      while ((int)workers_.size() < num_threads - 1) {
        const int worker = (int)workers_.size() + 1;
        workers_.emplace_back([this, worker] { work(worker); });
      }
      task_ = &task;
      num_tasks_ = num_tasks;
      next_.store(0);
      wanted_ = num_threads - 1;
      error_ = nullptr;
      generation_.fetch_add(1);
    }
    start_.notify_all();
    drain(task, num_tasks, 0);
    {
      std::unique_lock<std::mutex> lock(mutex_);
      task_ = nullptr;  // whoever wakes up now is too late, and not waited for
    }
    if (!spin_until([this] { return running_.load() == 0; })) {
      std::unique_lock<std::mutex> lock(mutex_);
      done_.wait(lock, [this] { return running_.load() == 0; });
    }
    std::unique_lock<std::mutex> lock(mutex_);
    if (error_) std::rethrow_exception(error_);
    return true;
  }

 private:
  void work(int worker) {
    uint64_t seen = 0;
    for (;;) {
      const std::function<void(int64_t, int)>* task;
      int64_t num_tasks;
      const auto has_news = [&] { return generation_.load() != seen; };
      spin_until(has_news);
      {
        std::unique_lock<std::mutex> lock(mutex_);
        start_.wait(lock, has_news);
        seen = generation_.load();
        if (worker > wanted_ || task_ == nullptr) continue;
        task = task_;
        num_tasks = num_tasks_;
        running_.fetch_add(1);
      }
      drain(*task, num_tasks, worker);
      std::unique_lock<std::mutex> lock(mutex_);
      if (running_.fetch_sub(1) == 1) done_.notify_one();
    }
  }

  void drain(const std::function<void(int64_t, int)>& task, int64_t num_tasks, int worker) {
    try {
      for (int64_t i = next_.fetch_add(1); i < num_tasks; i = next_.fetch_add(1)) task(i, worker);
    } catch (...) {
      next_.store(num_tasks);
      std::unique_lock<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }

  const pid_t owner_;
  std::mutex call_mutex_, mutex_;
  std::condition_variable start_, done_;
  std::vector<std::thread> workers_;
  const std::function<void(int64_t, int)>* task_ = nullptr;
  int64_t num_tasks_ = 0;
  std::atomic<int64_t> next_{0};
  int wanted_ = 0;
  std::atomic<int> running_{0};  // workers inside a task's function
  std::atomic<uint64_t> generation_{0};
  std::exception_ptr error_;
};

// Leaked on purpose: the workers sleep until the process ends, and after a fork the parent's pool cannot be joined. The
// pointer is atomic rather than under a mutex because a mutex held by another thread at fork() would stay locked for ever.
std::atomic<Pool*> current_pool{nullptr};

Pool& pool() {
  Pool* pool = current_pool.load(std::memory_order_acquire);
  const pid_t self = getpid();
  while (pool == nullptr || pool->owner() != self) {
    Pool* fresh = new Pool(self);
    if (current_pool.compare_exchange_strong(pool, fresh)) return *fresh;
    delete fresh;  // no workers yet
  }
  return *pool;
}

}  // namespace

void parallel_for(int64_t num_tasks, int num_threads, const std::function<void(int64_t, int)>& task) {
  if (num_threads > num_tasks) num_threads = (int)num_tasks;
  if (num_threads > 1 && pool().run(num_tasks, num_threads, task)) return;
  for (int64_t i = 0; i < num_tasks; ++i) task(i, 0);
}

}  // namespace worldr1
