// What the addon exports; interface Addon of lib/native.ts is their type.
#pragma once

#include <napi.h>

#include "environment.h"

namespace flash_gqa::binding {

using Function = Napi::Value(Environment&, const Napi::CallbackInfo&);

// device.cc
Function probe_cuda_call, open_device, close_device, device_info, memory_info, trim, synchronize;
Function begin_capture, end_capture, abort_capture, replay, free_graph;
// memory.cc
Function allocate, allocate_host, free_memory, live_buffers, upload, copy, fill, convert, scatter,
    read;
// file_load.cc
Function load_file;
// page_moves.cc
Function move_pages;
// attention_ops.cc
Function attention, explain_attention, rope_rows, rope_apply, append_kv;
// layout_ops.cc
Function repeat_kv, slice_window, merge_states, copy_pages;
// nn_ops.cc
Function embedding, linear, rms_norm, add, silu_mul, top_k, sample, gather_rows;

}  // namespace flash_gqa::binding
