import react from "@vitejs/plugin-react";
import { defineConfig } from "vitest/config";
import { compress } from "./build/compress.ts";

export default defineConfig({
  plugins: [react(), compress()],
  build: {
    target: "es2022",
    // The gateway's policy lets no page load anything from elsewhere, data: URLs of scripts and styles included.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
    chunkSizeWarningLimit: 1500,
    sourcemap: false,
    // JupyterLab's code calls eval where there is no browser; how long plugins take is of no interest to who starts Carrel.
    rolldownOptions: { checks: { eval: false, pluginTimings: false } },
  },
  test: {
    environment: "happy-dom",
    include: ["src/**/*.test.{ts,tsx}", "test/**/*.test.{ts,tsx}"],
  },
});
