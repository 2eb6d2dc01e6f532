// The transport plan on the CPU: the same integers and the same float64 bits as worldr1_kernels/noise_transport/plan.py, by
// counting where torch sorts. Most pixels are plain copies and touch nothing but a few arrays in order.
#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#include <algorithm>
#include <cmath>
#include <numeric>

#include "noise_transport.h"

namespace worldr1 {
namespace {

struct Reader {
  int32_t target, source;
};

struct Hit {
  int32_t merge, slot;
  double weight;
};

constexpr uint64_t kOnes = 0x0101010101010101ull;

uint64_t eight_at(const uint8_t* bytes) {
  uint64_t eight;
  std::memcpy(&eight, bytes, 8);
  return eight;
}

class Planner : public PlanBuilder {
 public:
  Planner(const PlanArgs& args, const PlanKernels& kernels)
      : args_(args), kernels_(kernels), pixels_(args.height * args.width), count_((int32_t)pixels_) {
    const size_t n = (size_t)pixels_;
    forward_.resize(n);
    backward_.resize(n);
    hits_.resize(n + 8);
    busy_.assign(n + 8, 0);
    readers_of_.assign(n, 0);
    index_.resize(n);
    cursor_.resize(n);
    held_.resize(n);
    following_.resize(n);
    std::iota(held_.begin(), held_.end(), 0);
    density_.assign(n, 1.0);
    raw_.resize(n);
    keep(0);
    note_offsets(0);
  }

  bool add(const void* field, bool is_double) override {
    if (!round(field, is_double)) return false;
    ++frame_;
    // Beyond the last frame that is kept only the values are looked at.
    if (frame_ <= args_.fields / args_.stride * args_.stride) advance();
    if (frame_ % args_.stride == 0) keep(frame_ / args_.stride);
    note_offsets(frame_);
    return true;
  }

  PlanLists finish() override {
    lists_.group_start.push_back((int64_t)lists_.member_pixel.size());
    lists_.merge_start.push_back((int64_t)lists_.hit_slot.size());
    lists_.num_slots = count_;
    return std::move(lists_);
  }

 private:
  void keep(int64_t row) {
    std::copy(held_.begin(), held_.end(), args_.slots + row * pixels_);
    std::copy(density_.begin(), density_.end(), args_.density + row * pixels_);
  }

  void note_offsets(int64_t frame) {
    int64_t* row = args_.offsets + frame * kPlanLists;
    row[0] = (int64_t)lists_.fresh_pixel.size();
    row[1] = (int64_t)lists_.group_slot.size();
    row[2] = (int64_t)lists_.member_pixel.size();
    row[3] = (int64_t)lists_.merge_slot.size();
    row[4] = (int64_t)lists_.hit_slot.size();
  }

  bool round(const void* field, bool is_double) {
    int32_t *forward = forward_.data(), *backward = backward_.data();
    return is_double ? kernels_.round_double(static_cast<const double*>(field), args_.height, args_.width, forward, backward)
                     : kernels_.round_float(static_cast<const float*>(field), args_.height, args_.width, forward, backward);
  }

  // The i-th slot that this frame takes.
  int32_t take(int64_t i) const {
    const int64_t available = (int64_t)free_.size();
    return i < available ? free_[(size_t)i] : count_ + (int32_t)(i - available);
  }

  // Where the first of eight sources goes when they all go side by side, -1 otherwise.
  int32_t run_of_eight(int64_t block) const {
    if (block + 8 > pixels_) return -1;
    const int32_t* to = forward_.data() + block;
    int32_t apart = 0;
    for (int32_t i = 1; i < 8; ++i) apart |= to[i] - to[0] - i;
    return apart == 0 ? to[0] : -1;
  }

  // How many forward hits each target has (two stands for more), and which targets read, merge or are fresh.
  void count_hits() {
    std::fill(hits_.begin(), hits_.end(), (uint8_t)0);
    const int32_t* forward = forward_.data();
    uint8_t* hits = hits_.data();
    for (int64_t block = 0; block < pixels_; block += 8) {
      const int32_t first = run_of_eight(block);
      if (first >= 0 && eight_at(hits + first) == 0) {
        std::memcpy(hits + first, &kOnes, 8);
        continue;
      }
      for (int64_t s = block; s < std::min(block + 8, pixels_); ++s) {
        const int32_t t = forward[s];
        if (t >= 0) hits[t] = (uint8_t)(hits[t] + (hits[t] < 2));
      }
    }
    readers_.clear();
    merging_.clear();
    first_fresh_ = lists_.fresh_pixel.size();
    for (int64_t block = 0; block < pixels_; block += 8) {
      if (eight_at(hits + block) == kOnes) continue;
      for (int64_t t = block; t < std::min(block + 8, pixels_); ++t) {
        if (hits[t] == 1) continue;
        if (hits[t] == 2) {
          index_[(size_t)t] = (int32_t)merging_.size();
          merging_.push_back((int32_t)t);
        } else if (backward_[(size_t)t] >= 0) {
          const int32_t b = backward_[(size_t)t];
          busy_[(size_t)b] = 1;
          ++readers_of_[(size_t)b];
          readers_.push_back({(int32_t)t, b});
        } else {
          lists_.fresh_pixel.push_back((int32_t)t);
        }
      }
    }
    num_fresh_ = (int64_t)(lists_.fresh_pixel.size() - first_fresh_);
  }

  // A source that is not simply copied to its target.
  void visit_source(int32_t s) {
    const int32_t t = forward_[(size_t)s];
    const int32_t size = (t >= 0) + readers_of_[(size_t)s];
    if (size == 0) {
      died_.push_back(held_[(size_t)s]);
      return;
    }
    double weight = density_[(size_t)s];
    int32_t slot = held_[(size_t)s];
    if (size > 1) {
      weight /= (double)size;
      lists_.group_slot.push_back(slot);
      lists_.group_start.push_back((int64_t)first_member_ + num_members_);
      if (t >= 0) {
        slot = take(num_fresh_ + num_members_);
        lists_.member_pixel.resize(first_member_ + (size_t)num_members_ + 1);
        lists_.member_is_target.resize(first_member_ + (size_t)num_members_ + 1);
        lists_.member_pixel.back() = s;
        lists_.member_is_target.back() = 0;
      }
      // From here on the place of its next expansion.
      cursor_[(size_t)s] = (int32_t)num_members_ + (t >= 0);
      num_members_ += size;
    }
    if (t < 0) return;  // only read: its readers come next
    if (hits_[(size_t)t] == 1) {
      following_[(size_t)t] = slot;
      raw_[(size_t)t] = weight;
    } else {
      hits_of_merges_.push_back({index_[(size_t)t], slot, weight});
    }
  }

  void visit_reader(Reader reader) {
    const size_t s = (size_t)reader.source, t = (size_t)reader.target;
    const int32_t size = (forward_[s] >= 0) + readers_of_[s];
    double weight = density_[s];
    int32_t slot = held_[s];
    if (size > 1) {
      const int32_t place = cursor_[s]++;
      lists_.member_pixel[first_member_ + (size_t)place] = reader.target;
      lists_.member_is_target[first_member_ + (size_t)place] = 1;
      slot = take(num_fresh_ + place);
      weight /= (double)size;
    }
    following_[t] = slot;
    raw_[t] = weight;
  }

  void add_merges() {
    const size_t num = merging_.size(), first = lists_.hit_slot.size();
    start_.assign(num + 1, 0);
    for (const Hit& hit : hits_of_merges_) ++start_[(size_t)hit.merge + 1];
    for (size_t m = 0; m < num; ++m) start_[m + 1] += start_[m];
    lists_.hit_slot.resize(first + hits_of_merges_.size());
    lists_.hit_weight.resize(first + hits_of_merges_.size());
    for (size_t m = 0; m < num; ++m) lists_.merge_start.push_back((int64_t)first + start_[m]);
    for (const Hit& hit : hits_of_merges_) {  // by rising source, and so within each merge
      const size_t row = first + (size_t)start_[(size_t)hit.merge]++;
      lists_.hit_slot[row] = hit.slot;
      lists_.hit_weight[row] = hit.weight;
    }
    size_t row = first;
    for (size_t m = 0; m < num; ++m) {
      const size_t begin = row, end = first + (size_t)start_[m];
      double sum = 0.0, squares = 0.0;
      for (; row < end; ++row) {
        const double weight = lists_.hit_weight[row], square = weight * weight;
        sum += weight;
        squares += square;
      }
      const double norm = std::sqrt(squares);
      for (size_t k = begin; k < end; ++k) lists_.hit_weight[k] /= norm;
      const size_t t = (size_t)merging_[m];
      following_[t] = take(num_fresh_ + num_members_ + (int64_t)m);
      raw_[t] = sum;
      lists_.merge_slot.push_back(following_[t]);
    }
  }

  void advance() {
    count_hits();
    died_.clear();
    hits_of_merges_.clear();
    first_member_ = lists_.member_pixel.size();
    num_members_ = 0;
    const size_t first_group = lists_.group_slot.size(), first_hit = lists_.hit_slot.size();
    const int32_t* forward = forward_.data();
    const int32_t* held = held_.data();
    int32_t* following = following_.data();
    for (int64_t block = 0; block < pixels_; block += 8) {
      const int32_t first = run_of_eight(block);
      if (first >= 0 && eight_at(busy_.data() + block) == 0 && eight_at(hits_.data() + first) == kOnes) {
        std::memcpy(following + first, held + block, 8 * sizeof(int32_t));
        std::memcpy(raw_.data() + first, density_.data() + block, 8 * sizeof(double));
        continue;
      }
      for (int64_t s = block; s < std::min(block + 8, pixels_); ++s) {
        const int32_t t = forward[s];
        if (t >= 0 && !busy_[(size_t)s] && hits_[(size_t)t] == 1) {
          following[t] = held[s];
          raw_[(size_t)t] = density_[(size_t)s];
        } else {
          visit_source((int32_t)s);
        }
      }
    }
    lists_.member_pixel.resize(first_member_ + (size_t)num_members_);
    lists_.member_is_target.resize(first_member_ + (size_t)num_members_);
    for (const Reader& reader : readers_) visit_reader(reader);
    for (int64_t i = 0; i < num_fresh_; ++i) {
      const size_t t = (size_t)lists_.fresh_pixel[first_fresh_ + (size_t)i];
      following_[t] = take(i);
      raw_[t] = 1.0;
      lists_.fresh_slot.push_back(following_[t]);
    }
    for (int64_t i = 0; i < num_members_; ++i) lists_.member_slot.push_back(take(num_fresh_ + i));
    add_merges();
    free_slots(first_group, first_hit);
    for (const Reader& reader : readers_) busy_[(size_t)reader.source] = 0, readers_of_[(size_t)reader.source] = 0;
    held_.swap(following_);
    kernels_.normalize(raw_.data(), pixels_, density_.data());
    density_.swap(raw_);
  }

  void free_slots(size_t first_group, size_t first_hit) {
    const int64_t taken = num_fresh_ + num_members_ + (int64_t)merging_.size(), available = (int64_t)free_.size();
    count_ += (int32_t)std::max<int64_t>(taken - available, 0);
    free_.erase(free_.begin(), free_.begin() + std::min(taken, available));
    free_.insert(free_.end(), died_.begin(), died_.end());
    free_.insert(free_.end(), lists_.group_slot.begin() + (int64_t)first_group, lists_.group_slot.end());
    free_.insert(free_.end(), lists_.hit_slot.begin() + (int64_t)first_hit, lists_.hit_slot.end());
  }

  const PlanArgs args_;
  const PlanKernels& kernels_;
  const int64_t pixels_;
  int64_t frame_ = 0;                         // the latest
  int32_t count_;                             // slots so far
  std::vector<int32_t> forward_, backward_;   // of the field, -1: outside
  std::vector<uint8_t> hits_;                 // 0, 1, 2 for more
  std::vector<uint8_t> busy_;                 // whether somebody reads the source
  std::vector<int32_t> readers_of_;
  // At a target that merges: which merge of the frame. At a source with a group: where its next member goes. A pixel may be
  // both, hence two arrays.
  std::vector<int32_t> index_, cursor_;
  std::vector<int32_t> held_, following_;     // slots
  std::vector<int32_t> free_;
  std::vector<double> density_, raw_;
  std::vector<Reader> readers_;               // by rising target
  std::vector<int32_t> merging_, died_;
  std::vector<Hit> hits_of_merges_;           // by rising source
  std::vector<int64_t> start_;
  size_t first_fresh_ = 0, first_member_ = 0;
  int64_t num_fresh_ = 0, num_members_ = 0;
  PlanLists lists_;
};

}  // namespace

std::unique_ptr<PlanBuilder> plan_builder(const PlanArgs& args, const char* level) {
  constexpr const PlanKernels* (*table[])() = WR_ISA_TABLE(transport_plan_kernels);
  return std::make_unique<Planner>(args, *table[choose_isa(level)]());
}

}  // namespace worldr1
