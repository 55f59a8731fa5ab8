// The union of clusters, core and extra rows, for the ops.
#pragma once

#include "common.h"
#include "cpu/kernels/shortlist_union.h"

namespace dynaspec::cpu {

// Checks the arguments and selects; `op` names the caller in messages.
Blocks select_union(const char* op, const Tensor& cluster_scores, const Tensor& cluster_offsets,
                    const Tensor& extra_rows, int64_t core_rows, int64_t budget);

// int32 [b, 2] and int64 [] of what was selected.
Tensor blocks_tensor(const Blocks& selected);
Tensor size_tensor(const Blocks& selected);

}  // namespace dynaspec::cpu
