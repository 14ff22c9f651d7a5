// A suite's table: its columns, and one line for each row as it comes in.

const { rowName } = require("./cases");

const nameWidth = (suite) => (["host", "cache", "runner"].includes(suite) ? 58 : 40);
const micro = (us) => (us == null ? "–" : us < 100 ? us.toPrecision(3) : us.toFixed(0));
const small = (error) => (error === undefined ? "–" : error.toExponential(2));
const over = (a, b) => (a === undefined || b === undefined ? "–" : (a / b).toFixed(2));

/** A column: its head, its width, and its cell of a row of ours and of all results by who made them. */
const column = (head, width, cell) => ({ head, width, cell });

const RATE = column("rate", 15, ({ gbps, tflops }) => {
  if (tflops !== undefined) return `${tflops.toPrecision(3)} TFLOP/s`;
  return gbps === undefined ? "" : `${gbps.toFixed(0)} GB/s`;
});
const FLOOR = [
  RATE,
  column("floor us", 10, ({ floor_us }) => (floor_us === undefined ? "" : micro(floor_us))),
  column("floor %", 9, ({ floor_us, us }) => {
    if (floor_us === undefined) return "";
    return floor_us === null ? "–" : `${((100 * floor_us) / us).toFixed(0)} %`;
  }),
];
const US = column("us", 10, ({ us }) => micro(us));
const PEERS = [
  column("cudnn us", 10, (_, { cudnn }) => micro(cudnn?.us)),
  column("fa2 us", 10, (_, { fa2 }) => micro(fa2?.us)),
  column("/ cudnn", 9, ({ us }, { cudnn }) => over(us, cudnn?.us)),
];
const PLAIN = [
  column("plain us", 10, (_, by) => micro(by["flash-gqa-plain"]?.us)),
  column("/ plain", 9, ({ us }, by) => over(us, by["flash-gqa-plain"]?.us)),
];
const tokens = ({ batch, seqLen }) => batch * seqLen;

/** No more than 1.2 times cuDNN's error, and the same bits in every run. */
function verdict({ rms, runs, equal_runs }, { cudnn }) {
  if (equal_runs < runs || rms > 1.2 * cudnn?.rms) return "BROKEN";
  return cudnn === undefined ? "–" : "held";
}

const COLUMNS = {
  decode: [US, ...FLOOR, ...PEERS, ...PLAIN],
  prefill: [US, ...FLOOR, ...PEERS],
  "prefill-window": [
    US,
    ...FLOOR,
    column("us/token", 10, ({ us, params }) => micro(us / tokens(params))),
  ],
  "prefill-paged": [US, ...FLOOR, ...PLAIN],
  precision: [
    column("rms", 12, ({ rms }) => small(rms)),
    column("max", 12, ({ max }) => small(max)),
    column("cudnn rms", 12, (_, { cudnn }) => small(cudnn?.rms)),
    column("fa2 rms", 12, (_, { fa2 }) => small(fa2?.rms)),
    column("/ cudnn", 9, ({ rms }, { cudnn }) => over(rms, cudnn?.rms)),
    column("same bits", 11, ({ runs, equal_runs }) => `${equal_runs} of ${runs}`),
    column("bars", 8, verdict),
  ],
  host: [US],
  cache: [US, ...FLOOR],
  runner: [
    column("us/step", 10, ({ us }) => micro(us)),
    column("rate", 15, ({ tokens_per_s }) => `${tokens_per_s.toFixed(0)} tokens/s`),
  ],
};

function tableHead(suite) {
  const heads = COLUMNS[suite].map(({ head, width }) => head.padStart(width));
  return `\n${suite.padEnd(nameWidth(suite))}${heads.join("")}`;
}

/** One line: ours, beside what the others have made of it. */
function tableRow(results) {
  const by = Object.fromEntries(results.map((row) => [row.impl, row]));
  const ours = by["flash-gqa"];
  const cells = COLUMNS[ours.suite].map(({ width, cell }) => cell(ours, by).padStart(width));
  const note = ours.note === undefined ? "" : `  ${ours.note}`;
  return `${rowName(ours).padEnd(nameWidth(ours.suite))}${cells.join("").trimEnd()}${note}`;
}

module.exports = { tableHead, tableRow };
