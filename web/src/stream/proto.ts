// The messages of the stream, in one place.

export {
  StreamEventSchema,
  StreamRequestSchema,
  type StreamEvent,
  type StreamRequest,
} from "../gen/carrel/v1/stream_pb";
export { type NotebookEvent } from "../gen/carrel/v1/notebooks_pb";
export { type BoxUsage } from "../gen/carrel/v1/notebooks_pb";
export { type FileEvent } from "../gen/carrel/v1/files_pb";
export { type ListBoxListenersResponse } from "../gen/carrel/v1/ports_pb";
export { TerminalErrorSchema, type TerminalEvent, type TerminalRequest } from "../gen/carrel/v1/terminal_pb";
