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

inline void spin_pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

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

  // Waits until `count` is reached, a wake-up, or `wait_s`; says whether it is reached.
  bool wait(uint64_t count, double wait_s) {
    if (reached(count)) return true;
    const auto spin_until = std::chrono::steady_clock::now() + kSpin;
    do {
      spin_pause();
      if (reached(count)) return true;
    } while (std::chrono::steady_clock::now() < spin_until);
    if (wait_s <= 0) return false;
    const timespec limit = {time_t(wait_s), long((wait_s - double(time_t(wait_s))) * 1e9)};
    sleepers.fetch_add(1, std::memory_order_seq_cst);
    const uint32_t seen = value.load(std::memory_order_seq_cst);
    if (int32_t(seen - uint32_t(count)) < 0) futex(FUTEX_WAIT, seen, &limit);
    sleepers.fetch_sub(1, std::memory_order_relaxed);
    return reached(count);
  }

 private:
  // As long as a sleep and a wake-up take: a shorter wait is cheaper spent awake, and a longer one costs at most
  // twice as much. Ranks may outnumber cores, so never longer.
  static constexpr std::chrono::microseconds kSpin{20};

  void futex(int operation, uint32_t argument, const timespec* limit) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&value), operation, argument, limit, nullptr, 0);
  }
};

static_assert(sizeof(Counter) == 64 && std::atomic<uint32_t>::is_always_lock_free);

}  // namespace parasample
