// What is measured: one row is one shape. The first rows of a suite are its most telling ones, for `--rows`.

/** What every row's `params` has; kvLen (decode) or seqLen (prefill) joins them. window and pageSize 0: none, dense. */
const BASE = {
  batch: 1,
  numQHeads: 32,
  numKvHeads: 8,
  headDim: 128,
  window: 0,
  pageSize: 0,
  dtype: "bfloat16",
};

const decode = (params) => ({ suite: "decode", params: { ...BASE, ...params } });
const prefill = (params) => ({ suite: "prefill", params: { ...BASE, ...params } });
const windowed = (seqLen, window, more) => ({
  suite: "prefill-window",
  params: { ...BASE, seqLen, window, ...more },
});
const pagedPrefill = (seqLen, pageSize, more) => ({
  suite: "prefill-paged",
  params: { ...BASE, seqLen, pageSize, ...more },
});

function cudaDecode() {
  const first = [
    { kvLen: 1024 },
    { kvLen: 8192 },
    { kvLen: 32768 },
    { batch: 8, kvLen: 8192 },
    { batch: 64, kvLen: 8192 },
    { numKvHeads: 1, kvLen: 32768 },
    { kvLen: 4096 },
    { kvLen: 131072, window: 4096 },
    { kvLen: 8192, pageSize: 16 },
    { kvLen: 8192, pageSize: 64 },
    { batch: 8, kvLen: 8192, pageSize: 16 },
    { batch: 8, kvLen: 8192, pageSize: 64 },
    { batch: 64, kvLen: 8192, pageSize: 16 },
    { batch: 64, kvLen: 8192, pageSize: 64 },
  ];
  const heads = [
    [32, 8],
    [32, 32],
    [32, 1],
    [64, 8],
  ];
  const lengths = [
    [1, 1024],
    [1, 8192],
    [1, 32768],
    [1, 131072],
    [8, 8192],
    [32, 4096],
    [64, 8192],
    [128, 2048],
  ];
  const table = heads.flatMap(([numQHeads, numKvHeads]) =>
    lengths.map(([batch, kvLen]) => ({ batch, numQHeads, numKvHeads, kvLen })),
  );
  return withoutRepeats([...first, ...table].map(decode));
}

function cudaPrefill() {
  const first = [
    { seqLen: 2048 },
    { seqLen: 4096 },
    { seqLen: 8192 },
    { seqLen: 16384 },
    { batch: 4, seqLen: 2048 },
    { batch: 4, seqLen: 8192 },
    { batch: 4, headDim: 64, seqLen: 8192 },
    { numQHeads: 16, headDim: 256, seqLen: 8192 },
  ];
  const shapes = [
    { batch: 1 },
    { batch: 4 },
    { batch: 1, numKvHeads: 32 },
    { batch: 1, numKvHeads: 1 },
    { batch: 4, headDim: 64 },
    { batch: 1, numQHeads: 16, headDim: 256 },
  ];
  const table = shapes.flatMap((shape) =>
    [512, 2048, 4096, 8192, 16384, 32768]
      .filter((seqLen) => shape.batch * seqLen <= 65536)
      .map((seqLen) => ({ ...shape, seqLen })),
  );
  return withoutRepeats([...first, ...table].map(prefill));
}

function withoutRepeats(rows) {
  return [...new Map(rows.map((row) => [rowName(row), row])).values()];
}

const CUDA = {
  decode: cudaDecode,
  prefill: cudaPrefill,
  "prefill-window": () => [8192, 32768, 65536].map((seqLen) => windowed(seqLen, 4096)),
  "prefill-paged": () =>
    [2048, 8192].flatMap((seqLen) => [16, 64].map((pageSize) => pagedPrefill(seqLen, pageSize))),
};

const CPU = {
  decode: () =>
    ["float32", "bfloat16"].flatMap((dtype) => [
      decode({ dtype, kvLen: 1024 }),
      decode({ dtype, kvLen: 8192 }),
      decode({ dtype, kvLen: 8192, window: 4096 }),
      decode({ dtype, kvLen: 8192, pageSize: 16 }),
    ]),
  prefill: () =>
    ["float32", "bfloat16"].flatMap((dtype) => [
      prefill({ dtype, seqLen: 128 }),
      prefill({ dtype, seqLen: 512 }),
    ]),
  "prefill-window": () => ["float32", "bfloat16"].map((dtype) => windowed(1024, 128, { dtype })),
  "prefill-paged": () => [pagedPrefill(512, 16, { dtype: "bfloat16" })],
};

const TINY = { numQHeads: 8, numKvHeads: 2, headDim: 64, dtype: "float32" };

/** As small as the suites go: shows that everything runs, not how fast. */
const TINY_CPU = {
  decode: () => [
    decode({ ...TINY, batch: 2, kvLen: 256 }),
    decode({ ...TINY, kvLen: 256, window: 64, pageSize: 16 }),
  ],
  prefill: () => [prefill({ ...TINY, seqLen: 64 })],
  "prefill-window": () => [windowed(128, 32, TINY)],
  "prefill-paged": () => [pagedPrefill(64, 16, TINY)],
};

const KERNEL_SUITES = Object.keys(CUDA);

/** Lengths around a tile's edge, the other 16-bit type, and the other head dims that the peers have. */
function precisionRows(quick) {
  const rows = [
    { seqLen: 4096 },
    { seqLen: 1023 },
    { seqLen: 4097 },
    { seqLen: 2048, dtype: "float16" },
    { seqLen: 2048, headDim: 64 },
    { seqLen: 2048, numQHeads: 16, headDim: 256 },
  ];
  const params = quick ? [{ seqLen: 1023 }] : rows;
  return params.map((more) => ({ suite: "precision", params: { ...BASE, ...more } }));
}

/** The rows of one suite on a device of this kind; --quick takes the first two. */
function kernelRows(suite, kind, quick) {
  if (kind === "cuda") return quick ? CUDA[suite]().slice(0, 2) : CUDA[suite]();
  return quick ? TINY_CPU[suite]() : CPU[suite]();
}

/** "B8 32/8 D128 T8192 page16". */
function rowName({ params }) {
  if (params.operation !== undefined) {
    return params.kvLen === undefined ? params.operation : `${params.operation} at ${params.kvLen}`;
  }
  const { batch, numQHeads, numKvHeads, headDim, kvLen, seqLen, window, pageSize, dtype } = params;
  const parts = [`B${batch} ${numQHeads}/${numKvHeads} D${headDim}`];
  parts.push(kvLen === undefined ? `S${seqLen}` : `T${kvLen}`);
  if (window > 0) parts.push(`window${window}`);
  if (pageSize > 0) parts.push(`page${pageSize}`);
  if (dtype !== "bfloat16") parts.push(dtype);
  return parts.join(" ");
}

const isDecode = ({ params }) => params.kvLen !== undefined;
const elementBytes = ({ params }) => (params.dtype === "float32" ? 4 : 2);

/** Keys of a sequence that one call must read: of a windowed decode, what the window shows. */
function keysSeen(row) {
  const { kvLen, seqLen, window } = row.params;
  if (!isDecode(row)) return seqLen;
  return window > 0 ? Math.min(window, kvLen) : kvLen;
}

/** Bytes of K and V that one call must read. */
function kvBytes(row) {
  const { batch, numKvHeads, headDim } = row.params;
  return 2 * batch * keysSeen(row) * numKvHeads * headDim * elementBytes(row);
}

/** The same work without pages, and of a decode without a window: what those cost shows beside it. Or null. */
function plainRow(row) {
  const { suite, params } = row;
  const plain = { ...params, pageSize: 0 };
  if (isDecode(row)) Object.assign(plain, { kvLen: keysSeen(row), window: 0 });
  const same = plain.pageSize === params.pageSize && plain.window === params.window;
  return same ? null : { suite, params: plain };
}

/** 4 · batch · heads · pairs · headDim, with S² / 2 pairs under the causal mask, or the window's. */
function flops({ params }) {
  const { batch, numQHeads, headDim, seqLen, window } = params;
  const narrow = window > 0 && window < seqLen;
  const pairs = narrow ? (window * (window + 1)) / 2 + (seqLen - window) * window : seqLen ** 2 / 2;
  return 4 * batch * numQHeads * headDim * pairs;
}

module.exports = {
  KERNEL_SUITES,
  flops,
  isDecode,
  kernelRows,
  keysSeen,
  kvBytes,
  plainRow,
  precisionRows,
  rowName,
};
