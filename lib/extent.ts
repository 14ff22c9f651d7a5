// Which bytes of a memory a tensor covers: rows of equal width, one stride apart.

/** In bytes, but for `rows`. */
export interface Extent {
  offset: number;
  rows: number;
  stride: number;
  width: number;
}

function end(extent: Extent): number {
  return extent.offset + (extent.rows - 1) * extent.stride + extent.width;
}

/**
 * Whether a byte may belong to both. Columns of the same rows, [a, a + w) and [b, b + w'), can be
 * apart.
 */
export function extentsOverlap(a: Extent, b: Extent): boolean {
  if (a.rows === 0 || b.rows === 0) return false;
  if (end(a) <= b.offset || end(b) <= a.offset) return false;
  if (a.stride !== b.stride) return true;
  const gap = (((b.offset - a.offset) % a.stride) + a.stride) % a.stride;
  return gap < a.width || gap + b.width > a.stride;
}
