// Finds and loads the addon.

import { existsSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { isAbsolute, join } from "node:path";
import { GqaError } from "./errors";
import type { Addon } from "./native";

/** The package: lib/ and dist/ lie at the same depth. */
const ROOT = join(__dirname, "..");
const load = createRequire(join(ROOT, "package.json"));

function cure(reason: string): string {
  if (/GLIBC(XX)?_/.test(reason))
    return "the prebuilt binary needs a newer C library than this system has: build from source";
  if (process.platform !== "linux")
    return `flash-gqa runs on Linux, this is ${process.platform}: use a container or WSL`;
  return (
    "in a clone run `npm run compile`; in an installed package build from source with " +
    "`npm i -D cmake-js node-addon-api && npx cmake-js compile -d node_modules/flash-gqa`; " +
    "in a bundle keep flash-gqa external, or set FLASH_GQA_BINARY to the absolute path of flash_gqa.node"
  );
}

function candidates(): string[] {
  const local = join(ROOT, "build", "Release", "flash_gqa.node");
  const prebuilds = join(ROOT, "prebuilds", `${process.platform}-${process.arch}`);
  const prebuilt = existsSync(prebuilds) ? readdirSync(prebuilds) : [];
  return [
    `${local} (${existsSync(local) ? "exists" : "absent"})`,
    `${prebuilds} (${prebuilt.length > 0 ? prebuilt.join(", ") : "absent"})`,
  ];
}

function failed(tried: string[], cause: unknown): GqaError {
  const reason =
    cause instanceof Error || (typeof cause === "object" && cause !== null && "message" in cause)
      ? String(cause.message).trim()
      : String(cause);
  return new GqaError(
    "NATIVE_LOAD",
    `flash-gqa: cannot load the native addon on ${process.platform}-${process.arch}, Node ${process.versions.node}.\n` +
      `  tried: ${tried.join("\n         ")}\n  reason: ${reason}\n  cure: ${cure(reason)}`,
    { cause },
  );
}

/** FLASH_GQA_BINARY if set, else what was built here, else the prebuilt binary. Throws NATIVE_LOAD. */
export function loadAddon(): Addon {
  const binary = process.env.FLASH_GQA_BINARY;
  if (binary !== undefined && binary !== "") {
    try {
      if (!isAbsolute(binary)) throw new Error("FLASH_GQA_BINARY must be an absolute path");
      return load(binary) as Addon;
    } catch (error) {
      throw failed([`${binary} (FLASH_GQA_BINARY)`], error);
    }
  }
  try {
    const nodeGypBuild = load("node-gyp-build") as (directory: string) => Addon;
    return nodeGypBuild(ROOT);
  } catch (error) {
    throw failed(candidates(), error);
  }
}
