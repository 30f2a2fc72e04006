// The stream of a box: one WebSocket that every tab of its page shares.

export { BoxStream, type Connection, type Hold, type StreamConfig } from "./client";
export { parseCursor, reached, standing } from "./cursor";
export {
  StreamProvider,
  type TerminalPeer,
  type NotebookWatch,
  useConnection,
  useFileEvents,
  useNotebookEvents,
  useStream,
  useTerminal,
  useUsage,
} from "./hooks";
export type { News, Want } from "./session";
