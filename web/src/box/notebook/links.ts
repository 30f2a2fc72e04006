// Where pictures that a notebook names are: beside it in the box, or in the cell's own attachments.

import type { JsonObject } from "@bufbuild/protobuf";
import type { CleanOptions } from "./output/clean";
import { base64 } from "./output/mime";

/** The folder of a path, without a slash at its end. */
export function folderOf(path: string): string {
  const at = path.lastIndexOf("/");
  return at < 0 ? "" : path.slice(0, at);
}

/** A path relative to a folder, without "." and ".."; what leads out of the top stays there. */
export function join(folder: string, path: string): string {
  const absolute = path.startsWith("/") || folder.startsWith("/");
  const out: string[] = [];
  for (const part of (path.startsWith("/") ? path : `${folder}/${path}`).split("/")) {
    if (part === "" || part === ".") continue;
    if (part === "..") out.pop();
    else out.push(part);
  }
  return (absolute ? "/" : "") + out.join("/");
}

export function linkOptions(folder: string, attachments: JsonObject | null, file: (path: string) => string): CleanOptions {
  return {
    picture: (src) => {
      let name: string;
      try {
        name = decodeURIComponent(src);
      } catch {
        return "";
      }
      if (name.startsWith("attachment:")) {
        const bundle = attachments?.[name.slice("attachment:".length)];
        if (typeof bundle !== "object" || bundle === null || Array.isArray(bundle)) return "";
        for (const type of ["image/png", "image/jpeg", "image/gif", "image/webp"]) {
          const data = base64(bundle[type]);
          if (data !== "") return `data:${type};base64,${data}`;
        }
        return "";
      }
      const path = join(folder, name.replace(/[?#].*$/s, ""));
      // A picture and nothing else: any other file is not for the page.
      return /\.(png|jpe?g|gif|webp|svg|bmp)$/i.test(path) ? file(path) : "";
    },
  };
}
