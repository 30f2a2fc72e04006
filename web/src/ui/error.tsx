import { Component, type ErrorInfo, type ReactNode } from "react";
import { message } from "../lib/errors";
import { Button } from "./button";
import { Icon } from "./icon";

/** Says that something did not work, why, and offers to try again. */
export function Problem({ error, title, retry, children }: { error?: unknown; title?: string; retry?: () => void; children?: ReactNode }) {
  return (
    <div className="problem" role="alert">
      <Icon name="warning" />
      <div className="problem-text">
        {title && <strong>{title}</strong>}
        {error !== undefined && <p>{message(error)}</p>}
        {children}
        {retry && (
          <Button small onClick={retry}>
            Try again
          </Button>
        )}
      </div>
    </div>
  );
}

interface BoundaryProps {
  /** What is shown here, in words: "The file list". */
  what: string;
  children: ReactNode;
  /** A change makes it try anew. */
  resetKey?: unknown;
}

/** Keeps a fault of one part of the page to that part. */
export class ErrorBoundary extends Component<BoundaryProps, { error: unknown; resetKey: unknown }> {
  override state: { error: unknown; resetKey: unknown } = { error: undefined, resetKey: this.props.resetKey };

  static getDerivedStateFromError(error: unknown) {
    return { error };
  }

  static getDerivedStateFromProps(props: BoundaryProps, state: { error: unknown; resetKey: unknown }) {
    return props.resetKey === state.resetKey ? null : { error: undefined, resetKey: props.resetKey };
  }

  override componentDidCatch(error: unknown, info: ErrorInfo) {
    console.error(`${this.props.what}:`, error, info.componentStack);
  }

  override render() {
    if (this.state.error === undefined) return this.props.children;
    // A part that was not loaded is often one of an older version of the page.
    const stale = /dynamically imported module|importing a module|preload/i.test(String(this.state.error));
    return (
      <div className="pad">
        {stale ? (
          <Problem title={`${this.props.what} could not be loaded`}>
            <p>The connection was lost, or Carrel was updated meanwhile. Loading the page again helps.</p>
            <Button small onClick={() => location.reload()}>
              Load the page again
            </Button>
          </Problem>
        ) : (
          <Problem title={`${this.props.what} has a fault`} error={this.state.error} retry={() => this.setState({ error: undefined })} />
        )}
      </div>
    );
  }
}
