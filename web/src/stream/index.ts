// The stream of a box: one WebSocket that every tab of its page shares.

export { BoxStream, type Channel, type ChannelHandler, type Connection, type Hold, type StreamConfig, type TerminalsHandler } from "./client";
export { parseCursor, reached, standing } from "./cursor";
export type { News, Want } from "./session";
