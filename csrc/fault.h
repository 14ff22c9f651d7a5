// What a fault word says, in words. Shared by both back ends.
#pragma once

#include <string>

#include "../cuda/params.h"

namespace flash_gqa {

inline std::string fault_message(const std::string& operation, int32_t fault) {
  const char* what = "unknown fault";
  switch (fault) {
    case kFaultPageId:
      what = "a page id in pageTable is outside [0, numPages); the tokens of that page were masked";
      break;
    case kFaultLength:
      what =
          "a length in kvLens or cuSeqlens is negative or larger than its buffer or table row "
          "allows; it was clamped";
      break;
    case kFaultOffsets:
      what = "cuSeqlens decreases or leaves the packed rows; it was clamped";
      break;
    case kFaultTokenId:
      what = "an index is outside the rows of its table; its row was set to zero";
      break;
    case kFaultTableRow:
      what = "an entry of tableRows is outside the page table; it was clamped";
      break;
    default:
      break;
  }
  return operation + ": " + what +
         ". The value was read on the device: check the int32 tensors given to this operation";
}

}  // namespace flash_gqa
