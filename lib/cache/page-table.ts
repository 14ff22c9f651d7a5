// The host's copy of every sequence's page table: [rows, maxPages] page ids. The device's copy follows it by single
// words: `set` records which entry changed, and the next plan sends those and nothing else, so that its cost does not
// depend on how long the sequences are.

export class PageTable {
  /** Entries of one row. */
  readonly maxPages: number;
  #rows: number;
  #entries: Int32Array;
  #freeRows: number[];
  #changed: number[] = [];

  constructor(rows: number, maxPages: number) {
    this.maxPages = maxPages;
    this.#rows = rows;
    this.#entries = new Int32Array(rows * maxPages);
    this.#freeRows = descending(0, rows);
  }

  get rows(): number {
    return this.#rows;
  }

  get hasFreeRow(): boolean {
    return this.#freeRows.length > 0;
  }

  /** Adds rows; those in use keep their index and their contents. */
  grow(rows: number): void {
    const entries = new Int32Array(rows * this.maxPages);
    entries.set(this.#entries);
    this.#entries = entries;
    this.#freeRows = [...descending(this.#rows, rows), ...this.#freeRows];
    this.#rows = rows;
  }

  /** A row for one sequence. What it held before is dead: entries are written before they are counted. */
  takeRow(): number {
    const row = this.#freeRows.pop();
    if (row === undefined) throw new RangeError("PageTable.takeRow: no free row");
    return row;
  }

  giveRow(row: number): void {
    this.#freeRows.push(row);
  }

  get(row: number, index: number): number {
    return this.#entries[row * this.maxPages + index]!;
  }

  set(row: number, index: number, page: number): void {
    const at = row * this.maxPages + index;
    this.#entries[at] = page;
    this.#changed.push(at);
  }

  /** The first `count` entries of a row, read-only by convention. */
  row(row: number, count: number): Int32Array {
    return this.#entries.subarray(row * this.maxPages, row * this.maxPages + count);
  }

  /** Copies the first `count` entries between rows, unrecorded: the device copies its own row. */
  copyRow(from: number, to: number, count: number): void {
    const start = from * this.maxPages;
    this.#entries.copyWithin(to * this.maxPages, start, start + count);
  }

  get changeCount(): number {
    return this.#changed.length;
  }

  /**
   * Writes (index, value) of every recorded entry into pairs [changeCount, 2]. An entry that changed twice stands
   * there twice with the same, last value, so the order in which a device writes them is free.
   */
  writeChanges(pairs: Int32Array): void {
    let at = 0;
    for (const index of this.#changed) {
      pairs[at++] = index;
      pairs[at++] = this.#entries[index]!;
    }
  }

  /** Called when the device has them. */
  clearChanges(): void {
    this.#changed.length = 0;
  }
}

function descending(from: number, to: number): number[] {
  return Array.from({ length: to - from }, (_, i) => to - 1 - i);
}
