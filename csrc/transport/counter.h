// A counter in shared memory on which other processes can sleep.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>
#include <ctime>

namespace parasample {

// Waits awake for a moment. That saves a sleep and a wake-up where the awaited rank has a core of its own and is
// nearly done; where ranks share a core it keeps that rank from running. So it is tried now and then, and done
// every time for as long as it pays.
class Spin {
 public:
  template <typename Reached>
  bool until(Reached reached) {
    if (!pays_ && ++skipped_ % kTryEvery != 0) return reached();
    const auto end = std::chrono::steady_clock::now() + kLimit;
    while (!(pays_ = reached()) && std::chrono::steady_clock::now() < end) pause();
    return pays_;
  }

 private:
  static constexpr std::chrono::microseconds kLimit{20};  // about what a sleep and a wake-up take
  static constexpr uint32_t kTryEvery = 16;               // so that vain tries cost about a microsecond a wait

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  bool pays_ = true;
  uint32_t skipped_ = 0;
};

// Alone in its cache line: its writer and its sleepers disturb no neighbour.
struct alignas(64) Counter {
  std::atomic<uint32_t> value;
  std::atomic<uint32_t> sleepers;

  // Counts are compared by their difference, so that 32 bits suffice for any number of messages.
  bool reached(uint64_t count) const {
    return int32_t(value.load(std::memory_order_acquire) - uint32_t(count)) >= 0;
  }

  // Releases what was written before to whoever sees the new count.
  void set(uint64_t count) {
    value.store(uint32_t(count), std::memory_order_seq_cst);
    wake();
  }

  // seq_cst here and in wait(): either the sleeper sees the new value, or we see the sleeper.
  void wake() {
    if (sleepers.load(std::memory_order_seq_cst) > 0) futex(FUTEX_WAKE, INT_MAX, nullptr);
  }

  // Whether `count` is reached: without `wait_s` at once or after a moment awake, with it after a sleep that ends
  // when the counter moves, at a wake-up, or after `wait_s`.
  bool wait(uint64_t count, double wait_s) {
    if (reached(count)) return true;
    if (wait_s <= 0) {
      static thread_local Spin spin;
      return spin.until([&] { return reached(count); });
    }
    const timespec limit = {time_t(wait_s), long((wait_s - double(time_t(wait_s))) * 1e9)};
    sleepers.fetch_add(1, std::memory_order_seq_cst);
    const uint32_t seen = value.load(std::memory_order_seq_cst);
    if (int32_t(seen - uint32_t(count)) < 0) futex(FUTEX_WAIT, seen, &limit);
    sleepers.fetch_sub(1, std::memory_order_relaxed);
    return reached(count);
  }

 private:
  void futex(int operation, uint32_t argument, const timespec* limit) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&value), operation, argument, limit, nullptr, 0);
  }
};

static_assert(sizeof(Counter) == 64 && std::atomic<uint32_t>::is_always_lock_free);

}  // namespace parasample
