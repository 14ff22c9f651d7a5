// A map of the pages for a person.

import type { Ledger } from "./ledger";
import type { PagePool } from "./page-pool";

const WIDTH = 64;
const MOST_CELLS = 16 * WIDTH;
const MOST_SEQUENCES = 16;

/**
 *   pages 1 to 96: 40 used (16 shared, 0 pinned), 8 cached, 48 free; one cell is 1 page
 *        1  1111222222222222222211111111oooooooo............................
 *       65  ................................
 *   . free  o cached  1-9 owners  + more  P pinned
 *   sequence 0: 130 tokens, pages 1 2 3 … 9 (9)
 */
export function drawPages(ledger: Ledger): string {
  const { pool } = ledger;
  const perCell = Math.ceil(pool.total / MOST_CELLS);
  const lines = [
    `pages 1 to ${pool.total}: ${pool.used} used (${pool.shared} shared, ${pool.pinned} pinned), ` +
      `${pool.cached} cached, ${pool.free} free; one cell is ${perCell} page${perCell > 1 ? "s" : ""}`,
  ];
  for (let first = 1; first <= pool.total; first += WIDTH * perCell) {
    let line = "";
    for (let cell = 0; cell < WIDTH; cell++) {
      line += drawCell(pool, first + cell * perCell, perCell);
    }
    lines.push(`${String(first).padStart(8)}  ${line}`);
  }
  lines.push(". free  o cached  1-9 owners  + more  P pinned");
  if (ledger.host.total > 0) {
    lines.push(`on the host: ${ledger.host.used} of ${ledger.host.total} pages`);
  }
  if (perCell > 1) lines.push("a cell shows its busiest page");
  const sequences = [...ledger.sequences];
  for (const sequence of sequences.slice(0, MOST_SEQUENCES)) {
    const pages = [...sequence.pages.entries].map(String);
    const shown = pages.length > 8 ? [...pages.slice(0, 6), "…", pages.at(-1)!] : pages;
    if (sequence.offloaded) {
      const { length } = sequence.pages.slots;
      lines.push(
        `sequence ${sequence.id}: ${sequence.length} tokens, offloaded, ${length} pages on the host`,
      );
      continue;
    }
    lines.push(
      `sequence ${sequence.id}: ${sequence.length} tokens, pages ${shown.join(" ")} (${pages.length})` +
        `${sequence.pinned ? ", pinned" : ""}${sequence.inStep ? ", in an open step" : ""}`,
    );
  }
  const more = sequences.length - MOST_SEQUENCES;
  if (more > 0) lines.push(`and ${more} more sequences`);
  return lines.join("\n");
}

function drawCell(pool: PagePool, first: number, count: number): string {
  let rank = -1;
  for (let page = first; page < first + count && page <= pool.total; page++) {
    rank = Math.max(rank, rankOf(pool, page));
  }
  if (rank < 0) return "";
  if (rank < 2) return ".o"[rank]!;
  if (rank === Number.POSITIVE_INFINITY) return "P";
  return rank < 11 ? String(rank - 1) : "+";
}

/** 0: free; 1: cached; 1 + owners; pinned above all. */
function rankOf(pool: PagePool, page: number): number {
  if (pool.pins(page) > 0) return Number.POSITIVE_INFINITY;
  if (pool.owners(page) > 0) return 1 + pool.owners(page);
  return pool.index.has(page) ? 1 : 0;
}
