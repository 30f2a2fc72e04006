import { type InputHTMLAttributes, type ReactNode, type SelectHTMLAttributes, useId } from "react";

interface FieldProps {
  label: string;
  hint?: ReactNode;
  /** What is wrong with what was typed. */
  problem?: string | undefined;
}

/** An input with its label; hint and problem are read out with it. */
export function Field({ label, hint, problem, ...input }: FieldProps & InputHTMLAttributes<HTMLInputElement>) {
  const id = useId();
  return (
    <div className="field">
      <label htmlFor={id}>{label}</label>
      <input id={id} aria-invalid={problem ? true : undefined} aria-describedby={hint || problem ? `${id}-more` : undefined} autoComplete="off" spellCheck={false} {...input} />
      <Under id={id} hint={hint} problem={problem} />
    </div>
  );
}

export function SelectField({ label, hint, problem, children, ...select }: FieldProps & SelectHTMLAttributes<HTMLSelectElement>) {
  const id = useId();
  return (
    <div className="field">
      <label htmlFor={id}>{label}</label>
      <select id={id} aria-describedby={hint || problem ? `${id}-more` : undefined} {...select}>
        {children}
      </select>
      <Under id={id} hint={hint} problem={problem} />
    </div>
  );
}

function Under({ id, hint, problem }: { id: string; hint?: ReactNode; problem?: string | undefined }) {
  if (!hint && !problem) return null;
  return (
    <p id={`${id}-more`} className={problem ? "field-problem" : "field-hint"} role={problem ? "alert" : undefined}>
      {problem || hint}
    </p>
  );
}
