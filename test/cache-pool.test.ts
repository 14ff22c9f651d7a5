// The page pool by itself: numbers, no device.

import { describe, expect, test } from "vitest";
import { NULL_PAGE, PagePool } from "../lib/cache/page-pool";

describe("PagePool", () => {
  test("hands out every page once, and never the null page", () => {
    const pool = new PagePool(6);
    const pages = Array.from({ length: 5 }, () => pool.allocate());
    expect(pages).toEqual([1, 2, 3, 4, 5]);
    expect(pages).not.toContain(NULL_PAGE);
    expect([pool.free, pool.used, pool.total]).toEqual([0, 5, 5]);
    expect(() => pool.allocate()).toThrow(RangeError);
  });

  test("a page is free when its last owner lets go, and is handed out next", () => {
    const pool = new PagePool(4);
    const page = pool.allocate();
    pool.retain(page);
    pool.retain(page);
    expect([pool.owners(page), pool.shared]).toEqual([3, 1]);
    pool.release(page);
    expect([pool.owners(page), pool.shared]).toEqual([2, 1]);
    pool.release(page);
    expect([pool.owners(page), pool.shared, pool.free]).toEqual([1, 0, 2]);
    pool.release(page);
    expect([pool.owners(page), pool.free]).toEqual([0, 3]);
    expect(pool.allocate()).toBe(page);
  });

  test("misuse is detected, never ignored", () => {
    const pool = new PagePool(3);
    const page = pool.allocate();
    pool.release(page);
    expect(() => pool.release(page)).toThrow(RangeError);
    expect(() => pool.retain(page)).toThrow(RangeError);
    expect(() => pool.release(NULL_PAGE)).toThrow(RangeError);
    expect(pool.free).toBe(2);
  });

  test("the high-water mark stays", () => {
    const pool = new PagePool(9);
    const pages = Array.from({ length: 7 }, () => pool.allocate());
    for (const page of pages) pool.release(page);
    pool.allocate();
    expect([pool.used, pool.highWater]).toEqual([1, 7]);
  });
});
