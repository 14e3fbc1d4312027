#include "transport/segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <new>
#include <sstream>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "transport/counter.h"

namespace parasample {

struct alignas(64) SegmentHeader {
  uint64_t magic;
  uint64_t bytes;
  uint32_t rank;
  uint32_t channels;
  uint64_t process, started_at;
  std::atomic<State> state;
};

struct alignas(64) ChannelHeader {
  ChannelSize size;
  Counter written;
  Counter* released() { return reinterpret_cast<Counter*>(this + 1); }  // one a reader
};

namespace {

constexpr uint64_t kMagic = 0x3130474e49525350;  // "PSRING01": change it with the layout
constexpr uint64_t kLine = 64;                   // cache lines; vector loads of a slot start aligned

uint64_t round_up(uint64_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }
uint64_t head_bytes(const ChannelSize& size) { return sizeof(ChannelHeader) + size.readers * sizeof(Counter); }

std::system_error system_error(const std::string& what) {
  return std::system_error(errno, std::generic_category(), what);
}

std::string random_name() {
  uint64_t words[2];
  if (getrandom(words, sizeof words, 0) != sizeof words) throw system_error("getrandom");
  std::ostringstream name;
  name << "/parasample-" << std::hex << words[0] << '-' << words[1];
  return name.str();
}

// When a process began, in clock ticks since boot (field 22 of its stat); 0 where it has ended, reaped or not.
// With it a process number that was given away again is not mistaken for the old process.
uint64_t began_at(uint64_t process) {
  std::ifstream file("/proc/" + std::to_string(process) + "/stat");
  std::string text;
  if (!std::getline(file, text)) return 0;
  std::istringstream fields(text.substr(text.rfind(')') + 1));  // a program's name may hold blanks
  std::string field;
  uint64_t ticks = 0;
  fields >> field;
  if (field == "Z" || field == "X") return 0;
  for (int skipped = 4; skipped < 22; ++skipped) fields >> field;
  fields >> ticks;
  return ticks;
}

}  // namespace

Segment::Segment(std::string name, uint32_t rank, std::vector<ChannelSize> channels)
    : name_(std::move(name)), rank_(rank), channels_(std::move(channels)), next_(channels_.size(), 0) {
  bytes_ = sizeof(SegmentHeader);
  for (const ChannelSize& size : channels_) {
    offsets_.push_back(bytes_);
    bytes_ += head_bytes(size) + size.slots * round_up(size.bytes);
  }
}

Segment::Segment(Segment&& other) noexcept
    : name_(std::move(other.name_)), rank_(other.rank_), channels_(std::move(other.channels_)),
      offsets_(std::move(other.offsets_)), next_(std::move(other.next_)), bytes_(other.bytes_),
      data_(std::exchange(other.data_, nullptr)), linked_(std::exchange(other.linked_, false)) {}

Segment::~Segment() {
  unlink();
  if (data_ != nullptr) munmap(data_, bytes_);
}

Segment Segment::create(uint32_t rank, std::vector<ChannelSize> channels) {
  Segment segment(random_name(), rank, std::move(channels));
  const int file = shm_open(segment.name_.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
  if (file < 0) throw system_error("shm_open");
  segment.linked_ = true;
  // Memory is taken here: were it missing later, a write would end the process with SIGBUS.
  errno = posix_fallocate(file, 0, off_t(segment.bytes_));
  if (errno != 0) {
    const auto error = system_error("posix_fallocate");
    ::close(file);
    throw error;
  }
  segment.map_file(file);
  segment.write_header();
  return segment;
}

Segment Segment::map(const std::string& name, uint32_t rank, std::vector<ChannelSize> channels) {
  Segment segment(name, rank, std::move(channels));
  const int file = shm_open(name.c_str(), O_RDWR | O_CLOEXEC, 0);
  if (file < 0) throw system_error("shm_open");
  struct stat found = {};
  if (fstat(file, &found) != 0 || uint64_t(found.st_size) != segment.bytes_ || found.st_uid != geteuid()) {
    ::close(file);
    throw std::runtime_error("expected " + std::to_string(segment.bytes_) + " bytes of this user, found " +
                             std::to_string(found.st_size) + " of user " + std::to_string(found.st_uid));
  }
  segment.map_file(file);
  segment.check_header();
  return segment;
}

void Segment::map_file(int file) {
  // Populated, so that the first messages do not stop at page faults.
  void* data = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file, 0);
  const auto error = system_error("mmap");
  ::close(file);
  if (data == MAP_FAILED) throw error;
  data_ = static_cast<uint8_t*>(data);
}

void Segment::write_header() {
  const uint64_t process = uint64_t(getpid());
  new (data_) SegmentHeader{kMagic,  bytes_,           rank_, uint32_t(channels_.size()),
                            process, began_at(process), State::kOpen};
  for (size_t index = 0; index < channels_.size(); ++index) {
    ChannelHeader& head = channel(index);
    head.size = channels_[index];  // counters are zero, as all of a new segment
  }
}

void Segment::check_header() const {
  const SegmentHeader& head = header();
  bool same = head.magic == kMagic && head.bytes == bytes_ && head.rank == rank_ &&
              head.channels == channels_.size();
  for (size_t index = 0; same && index < channels_.size(); ++index) {
    const ChannelSize &found = channel(index).size, &expected = channels_[index];
    same = found.bytes == expected.bytes && found.keep == expected.keep && found.slots == expected.slots &&
           found.readers == expected.readers;
  }
  if (!same) throw std::runtime_error("its header does not describe the channels of this rank");
}

void Segment::unlink() {
  if (std::exchange(linked_, false)) shm_unlink(name_.c_str());
}

int64_t Segment::reserve(size_t index, double wait_s) {
  const ChannelSize& size = channels_.at(index);
  const uint64_t message = next_[index];
  if (message >= size.slots) {
    for (uint32_t reader = 0; reader < size.readers; ++reader) {
      if (!channel(index).released()[reader].wait(message - size.slots + 1, wait_s)) return -1 - int64_t(reader);
    }
  }
  return int64_t(message % size.slots);
}

void Segment::publish(size_t index) { channel(index).written.set(++next_.at(index)); }

int64_t Segment::receive(size_t index, uint32_t reader, double wait_s) {
  const ChannelSize& size = channels_.at(index);
  if (reader >= size.readers) throw std::out_of_range("no such reader of this channel");
  const uint64_t message = next_[index];
  ChannelHeader& head = channel(index);
  if (message >= size.keep) {
    Counter& released = head.released()[reader];
    if (!released.reached(message - size.keep + 1)) released.set(message - size.keep + 1);
  }
  if (!head.written.wait(message + 1, wait_s)) return -1;
  next_[index] = message + 1;
  return int64_t(message % size.slots);
}

State Segment::state() const { return header().state.load(std::memory_order_acquire); }

void Segment::set_state(State state) { header().state.store(state, std::memory_order_release); }

void Segment::wake() {
  for (size_t index = 0; index < channels_.size(); ++index) {
    channel(index).written.wake();
    for (uint32_t reader = 0; reader < channels_[index].readers; ++reader) channel(index).released()[reader].wake();
  }
}

bool Segment::alive() const {
  const uint64_t found = began_at(header().process);
  return found != 0 && found == header().started_at;
}

uint64_t Segment::slot_offset(size_t index, uint32_t slot) const {
  const ChannelSize& size = channels_.at(index);
  if (slot >= size.slots) throw std::out_of_range("no such slot of this channel");
  return offsets_[index] + head_bytes(size) + slot * round_up(size.bytes);
}

SegmentHeader& Segment::header() const { return *reinterpret_cast<SegmentHeader*>(data_); }
ChannelHeader& Segment::channel(size_t index) const {
  return *reinterpret_cast<ChannelHeader*>(data_ + offsets_[index]);
}

}  // namespace parasample
