// The table of a run of run.sh: what each part did, and the names of what failed.
//   node test/gpu/summary.js FOLDER

const fs = require("node:fs");
const path = require("node:path");

const folder = process.argv[2];
const read = (name) => {
  try {
    return fs.readFileSync(path.join(folder, name), "utf8");
  } catch {
    return null;
  }
};

/** Vitest's report: counts, and the failures with the first lines of what they say. */
function tests(text) {
  const report = JSON.parse(text);
  const failures = report.testResults.flatMap((file) => {
    const failed = file.assertionResults.filter(({ status }) => status === "failed");
    const named = failed.map(({ fullName, failureMessages }) => [fullName, failureMessages[0]]);
    // A file that does not load has no tests to fail.
    return file.status === "failed" && named.length === 0
      ? [[path.basename(file.name), file.message]]
      : named;
  });
  const { numPassedTests: passed, numPendingTests: skipped } = report;
  return {
    text: `${passed} passed, ${failures.length} failed, ${skipped} skipped`,
    notes: failures.map(([name, why]) => `${name}: ${why.slice(0, 220).replaceAll("\n", " ")}`),
    good: failures.length === 0 && passed > 0,
  };
}

/** compute-sanitizer's report: its errors, counted by what they are and where. */
function sanitizer(text) {
  const lines = text.split("\n").map((line) => line.replace(/^=+ ?/, ""));
  const counts = new Map();
  for (const [i, line] of lines.entries()) {
    if (
      !/^(Uninitialized|Invalid|Barrier|Program hit|Host API|Error|Internal|Misaligned)/.test(line)
    )
      continue;
    const place = /^\s+at /.test(lines[i + 1] ?? "") ? lines[i + 1].trim() : "";
    const what = line.replace(/0x[0-9a-f]+/g, "ADDRESS");
    const key = `${what} ${place.replace(/\+0x[0-9a-f]+.*/, "").slice(0, 160)}`;
    counts.set(key, (counts.get(key) ?? 0) + 1);
  }
  const sum =
    lines.find((line) => line.startsWith("ERROR SUMMARY")) ?? "no summary: it did not end";
  const notes = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 12);
  return {
    text: sum,
    notes: notes.map(([key, count]) => `${count} x ${key}`),
    good: /: 0 errors/.test(sum),
  };
}

/** What became of one process of a part. */
function outcome(name) {
  const [status, seconds] = read(`${name}.status`).trim().split(" ");
  const [json, report, log] = [`${name}.json`, `${name}.report`, `${name}.log`].map(read);
  const last = (log ?? "").trim().split("\n").at(-1).slice(0, 200);
  let result = { text: last, notes: [], good: true };
  if (json !== null && name !== "bench") result = tests(json);
  else if (report !== null) {
    result = sanitizer(report);
    result.notes.unshift(last);
  }
  const code = status === "0" ? "" : ` (exit ${status})`;
  return {
    ...result,
    text: result.text + code,
    seconds: Number(seconds),
    good: status === "0" && result.good,
  };
}

/** "suite.1" and "suite.2" are halves of one part: their counts are added up. */
function together(outcomes) {
  if (outcomes.length === 1) return outcomes[0];
  const counts = outcomes.map(({ text }) => text.match(/\d+(?= (passed|failed|skipped))/g) ?? []);
  const sum = [0, 1, 2].map((i) => counts.reduce((total, of) => total + Number(of[i] ?? 0), 0));
  const codes = outcomes.map(({ text }) => text.match(/ \(exit \d+\)/)?.[0] ?? "").join("");
  return {
    text: `${sum[0]} passed, ${sum[1]} failed, ${sum[2]} skipped${codes}`,
    notes: outcomes.flatMap(({ notes }) => notes),
    seconds: Math.max(...outcomes.map(({ seconds }) => seconds)),
    good: outcomes.every(({ good }) => good),
  };
}

const files = fs.readdirSync(folder).filter((name) => name.endsWith(".status"));
const parts = new Map();
for (const name of files.map((file) => file.slice(0, -".status".length))) {
  const [part] = name.split(".");
  parts.set(part, [...(parts.get(part) ?? []), outcome(name)]);
}
let bad = 0;
for (const [part, outcomes] of parts) {
  const { text, notes, seconds, good } = together(outcomes);
  if (!good) bad++;
  console.log(
    `${good ? "ok " : "BAD"} ${part.padEnd(10)} ${String(seconds).padStart(4)} s  ${text}`,
  );
  for (const note of good ? [] : notes.slice(0, 14)) console.log(`      ${note}`);
}
console.log(
  bad === 0 ? `all ${parts.size} parts are good` : `${bad} of ${parts.size} parts are not good`,
);
process.exitCode = bad === 0 ? 0 : 1;
