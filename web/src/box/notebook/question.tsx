// What input() or getpass() asks. Whoever looks may answer; the first answer counts.

import { useEffect, useId, useRef, useState } from "react";
import { Button } from "../../ui/button";
import type { Run } from "./model/types";

export interface QuestionProps {
  run: Run;
  place: number;
  onAnswer: (execution: string, value: string) => Promise<boolean>;
}

export function Question({ run, place, onAnswer }: QuestionProps) {
  const [value, setValue] = useState("");
  const [sending, setSending] = useState(false);
  const input = useRef<HTMLInputElement>(null);
  const id = useId();
  const { question } = run;
  useEffect(() => {
    // The keyboard goes where it is waited for, unless somebody writes elsewhere.
    const at = document.activeElement;
    if (at === null || at === document.body || at.closest(`[data-cell="${CSS.escape(run.cell)}"]`) !== null) input.current?.focus();
  }, [run.cell]);
  if (question === null) return null;
  return (
    <form
      className="nb-question"
      onSubmit={(e) => {
        e.preventDefault();
        setSending(true);
        void onAnswer(run.id, value).finally(() => setSending(false));
      }}
    >
      <label htmlFor={id}>{question.prompt.trim() === "" ? `Cell ${place} waits for input` : question.prompt}</label>
      <input
        ref={input}
        id={id}
        type={question.password ? "password" : "text"}
        autoComplete="off"
        autoCapitalize="off"
        spellCheck={false}
        value={value}
        onChange={(e) => setValue(e.target.value)}
        onKeyDown={(e) => e.stopPropagation()}
      />
      <Button kind="primary" small busy={sending} onClick={(e) => e.currentTarget.form?.requestSubmit()}>
        Send
      </Button>
    </form>
  );
}
