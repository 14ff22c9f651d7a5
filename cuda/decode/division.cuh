// How one decode launch divides its keys among blocks: worked out by every block for itself, from
// lengths on the device, so that a captured graph never goes stale and no plan has to be made.
//
//   slab   kSlabKeys keys of one sequence and one KV head, the unit a warp works on
//   round  kKeyWarps slabs, one for each warp of a block
//   unit   rounds_per_unit rounds; the last unit of a sequence may be shorter
//   team   blocks that work on the same keys side by side, one for each head and tile of
//          rows: in memory their keys are neighbours, or the same
//
//   units:  | sequence 0: u u u u | sequence 1: u u u u u u | sequence 2: u u | ...
//   teams:  |   0   |   1   |   2   |   3   |   4   | ...      team t: [t * w, t * w + w)
//
// Few sequences: a unit is a whole team's share, and no team meets two sequences. Many sequences,
// or lengths that differ a lot: a unit is one round, and every team takes the same number of them,
// wherever sequences begin and end; or whole sequences, where they are alike. A few rounds more are
// better than going from one sequence to the next.
#pragma once

#include "../lengths.cuh"
#include "../mask.h"
#include "decode_args.h"

namespace flash_gqa::cuda::decode {

// Sequence b as a decode launch sees it; slabs = 0 where it is another launch's.
struct Pair {
  Sequence sequence;
  Mask mask;
  KeyRange visible;  // keys that at least one row sees
  int32_t rows;      // q_len * group_size
  int32_t slabs;     // at least 1: who sees no key still has rows to write

  __device__ Pair(const DecodeArgs& args, int32_t b, const Lengths& lengths, int32_t* fault)
      : sequence(checked_sequence(args.params.batch, args.params.kv, b, lengths.words, fault)),
        mask{sequence.q_len,     sequence.kv_len,         args.params.causal,
             args.params.window, args.params.sink_tokens, lengths.prefix_len},
        visible(mask.rows(0, sequence.q_len - 1)),
        rows(sequence.q_len * args.group_size),
        slabs(rows == 0 || rows > args.max_rows
                  ? 0
                  : max_i32(1, TileRange(visible, kSlabKeys).count())) {}

  __device__ int32_t rounds() const { return (slabs + kKeyWarps - 1) / kKeyWarps; }

  // The pair of another lane.
  __device__ Pair from_lane(int lane) const {
    Pair p = *this;
    for (int32_t* x : {&p.sequence.q_start, &p.sequence.q_len, &p.sequence.kv_start,
                       &p.sequence.kv_len, &p.sequence.table_row, &p.mask.prefix_len,
                       &p.visible.sink_end, &p.visible.lo, &p.visible.hi, &p.rows, &p.slabs})
      *x = __shfl_sync(0xffffffffu, *x, lane);
    p.mask.q_len = p.sequence.q_len;
    p.mask.kv_len = p.sequence.kv_len;
    return p;
  }
};

// What a block works on at a time: a team's keys of one sequence.
struct Piece {
  Pair pair;
  int32_t first;  // slab of the first key warp, whose next ones are `stride` apart,
  int32_t last;   // below this one
  int32_t stride;
  int32_t team;
  int32_t before;  // teams with other keys of the sequence, in front of this one
  int32_t behind;  // and behind it
};

struct Division {
  int32_t rounds_per_unit;
  int32_t units_per_team;
  // Where this block is.
  int32_t team;
  int32_t more;     // teams whose part it plays, behind this one
  int32_t left;     // units that the team has yet to take
  int64_t b_first;  // units before sequence b
  int32_t b;        // batch_size: nothing to do
  int32_t unit;     // of sequence b
  Pair pair;        // of sequence b

  // One warp comes to it for its block; lane i looks at sequences i, i + 32, ... `seen`: the lengths of
  // all sequences, or null, where they have to be read.
  __device__ Division(const DecodeArgs& args, int32_t first_team, const Lengths* seen,
                      int32_t* fault)
      : team(first_team),
        more(args.teams_per_block - 1),
        b_first(0),
        b(0),
        unit(first_team),
        pair(look(args, 0, seen, fault)) {
    const int32_t batch = args.params.batch.batch_size;
    if (batch == 1) {
      const int32_t rounds = pair.rounds();
      rounds_per_unit = max_i32(1, (rounds + args.teams - 1) / args.teams);
      units_per_team = 1;
      if (team * rounds_per_unit >= rounds) b = 1;
    } else {
      locate(args, seen, fault);
    }
    left = units_per_team;
  }

  // The block's next piece. False: it has no more.
  __device__ bool next(const DecodeArgs& args, const Lengths* seen, int32_t* fault, Piece& piece) {
    const int32_t batch = args.params.batch.batch_size;
    while (b < batch) {
      if (left == 0) {
        if (more == 0) return false;
        --more;
        ++team;
        left = units_per_team;
      }
      const int32_t units_of_b = units(pair.rounds());
      if (unit < units_of_b) {
        take(units_of_b, piece);
        return true;
      }
      unit -= units_of_b;
      b_first += units_of_b;
      if (++b < batch) pair = pair_of(args, b, seen, fault);
    }
    return false;
  }

 private:
  __device__ __forceinline__ int32_t units(int32_t rounds) const {
    return rounds_per_unit == 1 ? rounds : (rounds + rounds_per_unit - 1) / rounds_per_unit;
  }

  __device__ void take(int32_t units_of_b, Piece& piece) {
    const int32_t taken = min_i32(left, units_of_b - unit);
    // Where the sequence begins, counted from this team's first unit.
    const int32_t per_team = units_per_team;
    const auto begins = static_cast<int32_t>(b_first - static_cast<int64_t>(team) * per_team);
    piece.pair = pair;
    piece.team = team;
    if (per_team == 1) {
      // A whole share of one sequence is every units-th round of it, so that all blocks move through
      // memory together.
      piece.first = unit * kKeyWarps;
      piece.last = pair.slabs;
      piece.stride = units_of_b * kKeyWarps;
      piece.before = max_i32(0, -begins);
      piece.behind = begins + units_of_b - 1;
    } else {
      piece.first = unit * rounds_per_unit * kKeyWarps;
      piece.last = (unit + taken) * rounds_per_unit * kKeyWarps;
      piece.stride = kKeyWarps;
      piece.before = begins >= 0 ? 0 : (-begins + per_team - 1) / per_team;
      piece.behind = (begins + units_of_b - 1) / per_team;
    }
    unit += taken;
    left -= taken;
  }

  __device__ static int32_t lane_sequence(const DecodeArgs& args, int32_t at) {
    return min_i32(at + static_cast<int32_t>(threadIdx.x) % 32, args.params.batch.batch_size - 1);
  }
  __device__ static Pair look(const DecodeArgs& args, int32_t at, const Lengths* seen,
                              int32_t* fault) {
    return pair_of(args, lane_sequence(args, at), seen, fault);
  }
  __device__ static Pair pair_of(const DecodeArgs& args, int32_t b, const Lengths* seen,
                                 int32_t* fault) {
    return Pair(args, b, seen != nullptr ? seen[b] : Lengths(args.params, b), fault);
  }

  // One loop for both passes, because code that runs once costs more to fetch than to execute.
  __device__ void locate(const DecodeArgs& args, const Lengths* seen, int32_t* fault) {
    const int32_t batch = args.params.batch.batch_size;
    const int32_t lane = threadIdx.x % 32;
    int64_t total = 0;
    int64_t first = 0;  // this team's first unit
    int32_t longest = 0, sequences = 0;
    bool counted = false;
    b = batch;
    unit = 0;
#pragma unroll 1
    for (int32_t at = 0;;) {
      const int32_t rounds = at + lane < batch ? pair.rounds() : 0;
      if (!counted) {
        longest = max_i32(longest, rounds);
        total += rounds;
        sequences += rounds > 0;
      } else {
        const int32_t mine = units(rounds);
        int64_t end = mine;
#pragma unroll 1
        for (int lanes = 1; lanes < 32; lanes *= 2) {
          const int64_t below = __shfl_up_sync(0xffffffffu, end, lanes);
          if (lane >= lanes) end += below;
        }
        end += b_first;
        const uint32_t found = __ballot_sync(0xffffffffu, first < end);
        const int source = found != 0 ? __ffs(found) - 1 : 31;
        b_first = __shfl_sync(0xffffffffu, end - (found != 0 ? mine : 0), source);
        if (found != 0) {
          b = at + source;
          unit = static_cast<int32_t>(first - b_first);
          pair = pair.from_lane(source);
          return;
        }
      }
      at += 32;
      if (at >= batch) {
        if (counted) return;
        counted = true;
        at = 0;
        choose(args, static_cast<int32_t>(__reduce_max_sync(0xffffffffu, longest)),
               __reduce_add_sync(0xffffffffu, sequences), warp_sum(total));
        first = static_cast<int64_t>(team) * units_per_team;
        if (batch <= 32) continue;
      }
      pair = look(args, at, seen, fault);
    }
  }

  __device__ static int64_t warp_sum(int64_t x) {
#pragma unroll 1
    for (int lanes = 1; lanes < 32; lanes *= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
    return x;
  }

  __device__ void choose(const DecodeArgs& args, int32_t longest, int32_t sequences,
                         int64_t total) {
    const int32_t teams = args.teams;
    const int64_t fair = total < 0x7fff0000 ? (static_cast<uint32_t>(total) + teams - 1) / teams
                                            : (total + teams - 1) / teams;
    rounds_per_unit = 1;
    units_per_team = max_i32(1, static_cast<int32_t>(fair));
    if (sequences == 0) return;
    if (sequences > teams) {
      // Whole sequences for each team, where they are alike and nearly all teams then have some.
      const int32_t each = (sequences + teams - 1) / teams;
      const int32_t used = (sequences + each - 1) / each;
      if (total == static_cast<int64_t>(longest) * sequences && total < 0x7fff0000 &&
          used >= teams - teams / 16)
        units_per_team = each * longest;
      return;
    }
    const int32_t whole = sequences == 1 ? teams : teams / sequences;  // teams for each sequence
    const int32_t share = (longest + whole - 1) / whole;
    // To go from one sequence to the next takes as long as two rounds; who has one round does not.
    const int32_t slack = fair > 1 ? max_i32(2, static_cast<int32_t>(fair / 8)) : 0;
    if (share > fair + slack) return;
    rounds_per_unit = share;
    units_per_team = 1;
  }
};

}  // namespace flash_gqa::cuda::decode
