// The typed seam: nothing else touches the addon. Each operation writes its arguments, in the order
// written in native/, into one block of doubles that the addon reads in the same order
// (csrc/binding/*_ops.cc): a call costs one crossing and no allocation, and the addon checks the
// count, every handle and every extent before it enqueues.

export { addon, DTYPE_CODE } from "./native/addon";
export * from "./native/attention";
export * from "./native/layout";
export * from "./native/nn";
export type * from "./native/types";
