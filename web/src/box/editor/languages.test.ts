import { describe, expect, it } from "vitest";
import { languageOf } from "./languages";

describe("the language of a file", () => {
  it("follows its name", () => {
    const expected = {
      "a.py": "Python", "a.js": "JavaScript", "a.mjs": "JavaScript", "a.ts": "TypeScript", "a.tsx": "TypeScript JSX", "a.json": "JSON", "README.md": "Markdown", "a.html": "HTML", "a.css": "CSS",
      "a.sql": "SQL", "a.yml": "YAML", "a.sh": "Shell", ".bashrc": "Shell", "a.go": "Go", "a.rs": "Rust", "a.c": "C", "a.hpp": "C++", "A.java": "Java", "a.toml": "TOML", Dockerfile: "Dockerfile", "Dockerfile.dev": "Dockerfile",
    };
    for (const [name, language] of Object.entries(expected)) expect([name, languageOf(name)?.name]).toEqual([name, language]);
  });
  it("follows the first line where the name says nothing", () => {
    expect(languageOf("tool", "#!/usr/bin/env python3")?.name).toBe("Python");
    expect(languageOf("tool", "#!/bin/sh")?.name).toBe("Shell");
    expect(languageOf("notes")).toBeUndefined();
  });
  it("can be loaded", async () => {
    for (const name of ["a.py", "a.ts", "a.json", "a.md", "a.html", "a.css", "a.sql", "a.yaml", "a.sh", "a.go", "a.rs", "a.cpp", "a.java", "a.toml", "Dockerfile"]) {
      expect((await languageOf(name)!.load()).language.parser.parse("x").length).toBe(1);
    }
  });
});
