// The messages of the stream, in one place.

export {
  StreamEventSchema,
  StreamRequestSchema,
  type StreamEvent,
  type StreamRequest,
} from "../gen/carrel/v1/stream_pb";
export { type NotebookEvent } from "../gen/carrel/v1/notebooks_pb";
export { TerminalErrorSchema, type TerminalEvent, type TerminalRequest } from "../gen/carrel/v1/terminal_pb";
