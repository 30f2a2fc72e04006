// A cell that was changed here and elsewhere, in the same lines: both texts beside each other, and the one that shall be.

import { lazy, Suspense, useState } from "react";
import { Button } from "../../ui/button";

const CellEditor = lazy(() => import("./editor/editor"));

export interface ConflictProps {
  mine: string;
  theirs: string;
  language: string;
  onChoose: (text: string) => void;
}

export function Conflict({ mine, theirs, language, onChoose }: ConflictProps) {
  const [text, setText] = useState<string | null>(null);
  return (
    <div className="nb-conflict" role="group" aria-label="This cell was changed in two places">
      <p>
        <strong>This cell was changed here and elsewhere at once.</strong> Your text is kept; it is saved when you have chosen.
      </p>
      {text === null ? (
        <div className="nb-sides">
          <Side title="Yours" text={mine} language={language} button="Keep yours" onChoose={() => onChoose(mine)} />
          <Side title="Theirs" text={theirs} language={language} button="Take theirs" onChoose={() => onChoose(theirs)} />
        </div>
      ) : (
        <div className="nb-side">
          <h3>The text that shall be</h3>
          <div className="nb-source">
            <Suspense fallback={<pre className="nb-plain">{text}</pre>}>
              <CellEditor source={text} language={language} label="The text that shall be" onChange={setText} />
            </Suspense>
          </div>
        </div>
      )}
      <div className="nb-conflict-buttons">
        {text === null ? (
          <Button small onClick={() => setText(mine === "" ? theirs : `${theirs}\n${mine}`)}>
            Merge by hand
          </Button>
        ) : (
          <>
            <Button small kind="primary" onClick={() => onChoose(text)}>
              Save this
            </Button>
            <Button small onClick={() => setText(null)}>
              Back
            </Button>
          </>
        )}
      </div>
    </div>
  );
}

function Side({ title, text, language, button, onChoose }: { title: string; text: string; language: string; button: string; onChoose: () => void }) {
  return (
    <div className="nb-side">
      <h3>{title}</h3>
      <div className="nb-source">
        <Suspense fallback={<pre className="nb-plain">{text}</pre>}>
          <CellEditor source={text} language={language} label={title} readOnly onChange={() => {}} />
        </Suspense>
      </div>
      <Button small onClick={onChoose}>
        {button}
      </Button>
    </div>
  );
}
