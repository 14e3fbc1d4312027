// Shared memory of one sending rank: a ring of slots for each channel on which it sends.
//
// Message m of a channel lies in slot m % slots. Three counters a channel decide who may touch it:
//   written        messages that the sender has finished; a reader looks at message m only when written > m
//   released[r]    messages that reader r has given back; it holds at most `keep` of those it received
// The sender writes message m only when released[r] > m - slots for every reader r: nobody holds that slot's
// previous message. With slots = keep + 2 it can therefore be two messages ahead of what a reader has received
// (one that waits, one that it writes) without waiting, and no message changes while a reader holds it. All
// readers read the same slot, so that a broadcast costs one copy.
//
// Both sides compute the layout from their own list of channels; what the header says is only compared with it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace parasample {

struct ChannelSize {
  uint64_t bytes;  // of one message
  uint32_t keep, slots, readers;
};

enum class State : uint32_t { kOpen, kClosed, kAborted };

struct SegmentHeader;
struct ChannelHeader;

class Segment {
 public:
  // Makes the segment of `rank`, for this process, under a name that nobody can guess.
  // Throws std::system_error where the system refuses memory.
  static Segment create(uint32_t rank, std::vector<ChannelSize> channels);
  // Maps the segment of another rank. Throws std::system_error, or std::runtime_error where the segment is not
  // the one that this rank's own list of channels describes.
  static Segment map(const std::string& name, uint32_t rank, std::vector<ChannelSize> channels);

  Segment(Segment&& other) noexcept;
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;
  ~Segment();  // unmaps; removes the name where unlink() has not

  const std::string& name() const { return name_; }
  void unlink();

  // Sender: the free slot for the next message, or -1 - r after `wait_s` where reader r still holds it.
  int64_t reserve(size_t channel, double wait_s);
  void publish(size_t channel);  // the reserved slot holds the next message now
  // Reader: gives back what it no longer keeps; the next message's slot, or -1 where none came in `wait_s`.
  // Both return early when somebody calls wake().
  int64_t receive(size_t channel, uint32_t reader, double wait_s);

  State state() const;
  void set_state(State state);
  void wake();         // everybody who sleeps on a counter of this segment
  bool alive() const;  // whether the process that made the segment runs

  uint8_t* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }
  uint64_t slot_offset(size_t channel, uint32_t slot) const;

 private:
  Segment(std::string name, uint32_t rank, std::vector<ChannelSize> channels);
  void map_file(int file);
  void write_header();
  void check_header() const;
  SegmentHeader& header() const;
  ChannelHeader& channel(size_t index) const;

  std::string name_;
  uint32_t rank_;
  std::vector<ChannelSize> channels_;
  std::vector<uint64_t> offsets_;  // of each channel's header
  std::vector<uint64_t> next_;     // of each channel: the message that this process sends or receives next
  uint64_t bytes_ = 0;
  uint8_t* data_ = nullptr;
  bool linked_ = false;
};

}  // namespace parasample
