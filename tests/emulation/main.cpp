// Runs the GPU's code for SEEDS on threads of the CPU and compares every label with the CPU's own drivers.
//
//   emulation alone              one thread: every kind of image and every setting
//   emulation teams THREADS...   teams of so many threads: small images
//   emulation race THREADS...    the least that has all steps, for -fsanitize=thread
//
// Exits with 1 and a line for each difference.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "host_team.h"
#include "seeds_literal.h"
#include "seeds_launch.h"
#include "seeds_parallel_grid.h"
#include "seeds_parallel_team.h"
#include "seeds_plans.h"
#include "seeds_sequential_team.h"

namespace ck = cast_kernels;
using emulation::run_team;

namespace {

int failures = 0;
int runs = 0;

// Images
struct Picture {
  std::string name;
  int height, width;
  std::vector<uint8_t> pixels;  // [H, W, 3]
  bool planar = false;          // [3, H, W]

  ck::SeedsBatch batch() const {
    if (planar) return {pixels.data(), 1, height, width, 0, width, 1, int64_t{height} * width};
    return {pixels.data(), 1, height, width, 0, 3 * width, 3, 1};
  }
};

Picture picture(const std::string& name, int height, int width) {
  Picture made{name, height, width, std::vector<uint8_t>(static_cast<size_t>(3) * height * width)};
  std::mt19937 random(7);
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      for (int c = 0; c < 3; ++c) {
        const int grain = static_cast<int>(random());
        int value = 90;  // constant
        if (name == "noise") value = grain & 255;
        if (name == "two colours") value = (grain >> 4 & 1) * 255;
        if (name == "gradient") value = (c == 0 ? x * 255 / width : c == 1 ? y * 255 / height : (x + y) * 2 % 256);
        if (name == "photo") {
          const double wave =
              std::sin(0.11 * x + c) * std::cos(0.07 * y * (c + 1)) + (std::hypot(x - 20.0, y - 25.0) < 18);
          value = static_cast<int>(110 + 60 * wave) + (grain & 15);
        }
        made.pixels[(static_cast<size_t>(y) * width + x) * 3 + c] = static_cast<uint8_t>(value < 0 ? 0 : value & 255);
      }
    }
  }
  return made;
}

// Memory that is filled with a pattern, so that reading what nothing wrote is noticed.
class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_(bytes, '\xab') {}
  char* data() { return bytes_.data(); }

 private:
  std::vector<char> bytes_;
};

void compare(const std::string& what, const std::vector<int32_t>& found, const std::vector<int32_t>& expected) {
  ++runs;
  size_t different = 0;
  for (size_t i = 0; i < expected.size(); ++i) different += found[i] != expected[i];
  if (different == 0) return;
  ++failures;
  std::printf("%s: %zu of %zu labels differ\n", what.c_str(), different, expected.size());
}

// Parallel order
struct Request {
  int superpixels;
  std::string quality;
  ck::SeedsColours colours;
  int stride;
};

struct ParallelCase {
  const Picture& picture;
  const Request& request;
  ck::SeedsGrid grid;
  ck::SeedsSchedule schedule;
  ck::ParallelPlan plan;
  std::vector<int32_t> expected;

  ParallelCase(const Picture& p, const Request& r)
      : picture(p),
        request(r),
        grid(ck::seeds_grid(p.height, p.width, r.superpixels, 1)),
        schedule(ck::seeds_schedule(p.height, p.width, r.superpixels, ck::seeds_steps(r.quality))),
        plan(ck::parallel_plan(grid, schedule, r.colours)),
        expected(output()) {
    ck::seeds_literal(p.batch(), expected.data(), schedule, r.colours, r.stride, 0);
  }

  std::vector<int32_t> output() const {
    const int stride = request.stride;
    return std::vector<int32_t>(((picture.height + stride - 1) / stride) * ((picture.width + stride - 1) / stride), -1);
  }

  std::string name(const std::string& driver, int threads) const {
    return driver + ", " + std::to_string(threads) + " threads, " + picture.name + " " +
           std::to_string(picture.height) + "x" + std::to_string(picture.width) + "/" +
           std::to_string(request.superpixels) + " " + request.quality + ", " + std::to_string(request.colours.bins) +
           " bins";
  }
};

// Room for one image on a device with so much shared memory in a block.
ck::ParallelLaunch launch(const ParallelCase& c, ck::SeedsDriver driver, size_t block_memory) {
  return ck::parallel_launch(c.plan, c.schedule, 1, driver, {132, block_memory, true});
}

constexpr size_t kShared = 232448;

// With less a block cannot hold the image: bins, lists and most histograms stay in the workspace.
size_t least_shared(const ParallelCase& c) {
  for (size_t bytes = 1024;; bytes += 1024) {
    try {
      launch(c, ck::SeedsDriver::block, bytes);
      return bytes;
    } catch (const std::invalid_argument&) {
      if (bytes > kShared) throw;
    }
  }
}

bool fits_block(const ParallelCase& c) { return c.plan.num_labels <= 255 && c.schedule.most_pixels <= 65535; }

void run_block(const ParallelCase& c, int threads, size_t block_memory) {
  const ck::ParallelLaunch launch = ::launch(c, ck::SeedsDriver::block, block_memory);
  Memory shared(launch.shared_bytes);
  Memory slot(launch.slot_bytes);
  std::vector<int32_t> labels = c.output();
  run_team(threads, 1, [&](auto& team) {
    const auto label = launch.near_bins ? ck::label_by_block<true, emulation::HostTeam>
                                        : ck::label_by_block<false, emulation::HostTeam>;
    label(team, c.plan, launch, ck::kLabTables, c.picture.batch().image(0), shared.data(), slot.data(),
          c.request.stride, labels.data());
  });
  const std::string where = launch.near_bins ? "near" : "far";
  compare(c.name("block, bins " + where + ", histograms of " + std::to_string(launch.near_used) + " near", threads),
          labels, c.expected);
}

void run_cluster(const ParallelCase& c, int threads) {
  const ck::ParallelLaunch launch = ::launch(c, ck::SeedsDriver::cluster, kShared);
  std::vector<std::unique_ptr<Memory>> shared;
  for (int i = 0; i < ck::kClusterBlocks; ++i) shared.push_back(std::make_unique<Memory>(launch.shared_bytes));
  Memory slot(launch.slot_bytes);
  std::vector<int32_t> labels = c.output();
  run_team(threads * ck::kClusterBlocks, ck::kClusterBlocks, [&](auto& team) {
    const auto label = launch.wide_counts ? ck::label_by_cluster<uint32_t, emulation::HostTeam>
                                          : ck::label_by_cluster<uint16_t, emulation::HostTeam>;
    label(team, c.plan, launch, ck::kLabTables, c.picture.batch().image(0), shared[team.group_index()]->data(),
          slot.data(), c.request.stride, labels.data());
  });
  compare(c.name("cluster", threads), labels, c.expected);
}

template <class Count>
void run_grid(const ParallelCase& c, int threads) {
  const ck::ParallelLaunch launch = ::launch(c, ck::SeedsDriver::grid, kShared);
  if (launch.wide_counts != (sizeof(Count) == 4)) return;
  ck::ParallelState<uint16_t, uint16_t, Count> state;
  Memory slot(launch.slot_bytes);
  ck::Replay far(slot.data(), launch.far);
  ck::lay_out_grid(c.plan, launch.list_words, far, &state);
  std::vector<int32_t> labels = c.output();
  ck::launch_grid_steps(c.plan, c.request.stride, [&](auto tag, const ck::GridArguments& arguments) {
    run_team(threads, 1, [&](auto& team) {
      if constexpr (tag.value == ck::GridStep::number_bins) {
        const uint32_t bins = ck::number_bins(team, state.used, c.plan.bins, state.partial);
        if (team.rank() == 0) *state.num_bins = bins;
      } else {
        ck::run_grid_step<tag.value>(team, c.plan, state, ck::kLabTables, c.picture.batch().image(0), labels.data(),
                                     arguments);
      }
    });
  });
  compare(c.name("grid", threads), labels, c.expected);
}

void run_parallel(const Picture& picture, const Request& request, const std::vector<int>& teams) {
  const ParallelCase c(picture, request);
  for (const int threads : teams) {
    if (fits_block(c)) run_block(c, threads, kShared);
    if (threads > 8) continue;  // slow; the other drivers differ in where their arrays lie
    if (fits_block(c)) {
      run_block(c, threads, least_shared(c));
      run_block(c, threads, least_shared(c) + (16 << 10));  // room for more histograms, not for bins
    }
    run_cluster(c, threads);
    run_grid<uint16_t>(c, threads);
    run_grid<uint32_t>(c, threads);
  }
}

// Colours: the GPU's way to linear light is the CPU's.
void every_colour() {
  for (int colour = 0; colour < 1 << 24; ++colour) {
    const auto r = static_cast<uint8_t>(colour >> 16), g = static_cast<uint8_t>(colour >> 8);
    const auto b = static_cast<uint8_t>(colour);
    const ck::Xyz one = ck::xyz_by_table(ck::kLabTables, r, g, b);
    const ck::Xyz other = ck::xyz_by_products(ck::kLabTables, r, g, b);
    if (one.x == other.x && one.y == other.y && one.z == other.z) continue;
    ++failures;
    std::printf("colour %06x differs\n", colour);
    return;
  }
  ++runs;
}

// Sequential order
struct SequentialRequest {
  int superpixels, levels;
  ck::SeedsOptions options;
};

void run_sequential(const Picture& picture, const SequentialRequest& request, const std::vector<int>& teams) {
  const ck::SeedsGrid grid = ck::seeds_grid(picture.height, picture.width, request.superpixels, request.levels);
  std::vector<int32_t> expected(static_cast<size_t>(picture.height) * picture.width);
  ck::SeedsSequential(grid, request.options, ck::seeds_pixels_scalar).run(picture.batch().image(0), expected.data(), 1);
  const ck::SequentialPlan plan = ck::sequential_plan(grid, request.options);
  for (const int threads : teams) {
    ck::SequentialState state{};
    Memory memory(ck::lay_out(plan, nullptr, &state));
    ck::lay_out(plan, memory.data(), &state);
    ck::SequentialScratch scratch;
    std::vector<int32_t> labels(expected.size(), -1);
    run_team(threads, 1, [&](auto& team) {
      ck::seeds_sequential_image(team, plan, state, scratch, ck::kLabTables, picture.batch().image(0), labels.data(),
                                 1);
    });
    compare("sequential, " + std::to_string(threads) + " threads, " + picture.name + " " +
                std::to_string(picture.height) + "x" + std::to_string(picture.width) + "/" +
                std::to_string(request.superpixels),
            labels, expected);
  }
}

const char* const kPictures[] = {"photo", "noise", "constant", "two colours", "gradient"};

void parallel_alone() {
  const Request requests[] = {{60, "best", {15, true}, 1}, {20, "fast", {5, true}, 4}, {60, "fast", {15, false}, 7}};
  for (const char* const name : kPictures) {
    for (const Request& request : requests) run_parallel(picture(name, 67, 82), request, {1});
    run_parallel(picture(name, 41, 97), requests[0], {1});
  }
  for (const int width : {80, 81, 82, 83}) {
    Picture planes = picture("photo", 64, width);
    planes.planar = true;  // its bytes in other places: another image
    for (const Picture& image : {planes, picture("photo", 64, width)}) run_parallel(image, requests[1], {1});
  }
  run_parallel(picture("photo", 120, 150), {10, "best", {3, true}, 1}, {1});      // dense cells
  run_parallel(picture("noise", 120, 120), {10, "fast", {40, false}, 1}, {1});    // thousands of bins
  run_parallel(picture("photo", 150, 150), {400, "fast", {15, true}, 8}, {1});    // 16-bit labels
  run_parallel(picture("photo", 360, 360), {10, "fast", {8, true}, 1}, {1});      // labels of over 65,535 pixels
  run_parallel(picture("photo", 13, 13), {1, "best", {15, true}, 1000}, {1, 7});  // the smallest
}

void parallel_teams(const std::vector<int>& teams) {
  for (const char* const name : kPictures) {
    run_parallel(picture(name, 37, 50), {24, "fast", {15, true}, 2}, {teams[0]});
  }
  run_parallel(picture("photo", 25, 28), {10, "fast", {15, true}, 1}, teams);          // blocks of 49 pixels
  run_parallel(picture("gradient", 60, 90), {10, "fast", {2, false}, 1}, {teams[0]});  // dense cells
  run_parallel(picture("noise", 58, 63), {10, "fast", {15, false}, 1}, teams);  // of 156: whole warps list their bins
}

void sequential_alone() {
  const SequentialRequest requests[] = {{60, 1, {15, 2, 20, false, true}}, {40, 3, {15, 0, 5, true, true}},
                                        {90, 1, {15, 3, 8, false, false}}, {50, 4, {8, 5, 4, true, false}},
                                        {100, 1, {1, 1, 4, false, true}},  {30, 1, {20, 4, 0, false, true}}};
  for (const char* const name : kPictures) {
    for (const auto& [height, width] : {std::pair{64, 63}, {97, 131}, {41, 160}}) {
      for (const SequentialRequest& request : requests) run_sequential(picture(name, height, width), request, {1});
    }
  }
  // Blocks so large that the products of counts pass 2^24 and the order of OpenCV's sum may matter.
  run_sequential(picture("noise", 700, 700), {10, 3, {15, 2, 1, false, false}}, {1});
}

void sequential_teams(const std::vector<int>& teams) {
  for (const char* const name : {"photo", "noise", "gradient"}) {
    run_sequential(picture(name, 37, 50), {24, 1, {15, 2, 4, false, true}}, {teams[0]});
  }
  run_sequential(picture("photo", 25, 28), {10, 2, {5, 1, 2, true, true}}, teams);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  std::vector<int> teams;
  for (int i = 2; i < argc; ++i) teams.push_back(std::atoi(argv[i]));
  const bool has_teams = !teams.empty();
  if (mode == "alone") {
    every_colour();
    parallel_alone();
    sequential_alone();
  } else if (mode == "teams" && has_teams) {
    parallel_teams(teams);
    sequential_teams(teams);
  } else if (mode == "race" && has_teams) {
    run_parallel(picture("photo", 29, 34), {16, "fast", {15, true}, 1}, teams);
    run_parallel(picture("gradient", 48, 60), {10, "fast", {2, false}, 1}, teams);  // dense cells
    run_sequential(picture("photo", 29, 34), {16, 2, {15, 2, 3, true, true}}, teams);
  } else {
    std::fprintf(stderr, "usage: emulation alone, or teams|race THREADS...\n");
    return 2;
  }
  std::printf("%d runs, %d differ\n", runs, failures);
  return failures == 0 ? 0 : 1;
}
