import { readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { constants, gzip } from "node:zlib";
import type { Plugin } from "vite";

const compressible = /\.(html|js|css|svg|json|map|txt|wasm)$/;

/** Replaces every file of the bundle that compression makes smaller by NAME.gz, which the gateway sends as it is. */
export function compress(): Plugin {
  let out = "";
  return {
    name: "carrel-compress",
    apply: "build",
    configResolved(config) {
      out = config.build.outDir;
    },
    async closeBundle() {
      for (const entry of await readdir(out, { recursive: true, withFileTypes: true })) {
        const path = join(entry.parentPath, entry.name);
        if (!entry.isFile() || !compressible.test(entry.name)) continue;
        const plain = await readFile(path);
        const small = await promisify(gzip)(plain, { level: constants.Z_BEST_COMPRESSION });
        if (small.length >= plain.length) continue;
        await writeFile(`${path}.gz`, small);
        await rm(path);
      }
    },
  };
}
