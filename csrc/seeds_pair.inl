// What decide() works on, included where seeds_pixels.inl is.

struct Pair {
  float* bin_p;  // [labels] histogram row of the colour of p
  float* bin_q;
  float* totals;         // [labels]
  uint16_t* labels;      // of p and q, side by side
  uint16_t* other;       // the label of p in the other plane
  int64_t other_stride;  // from there to that of q
  const float* factor;   // prior of p, of q: PriorTable
};

constexpr int kNone = -(1 << 30);  // decide(): neither moved; 0 where p did, 1 where q did
