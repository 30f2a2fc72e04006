// The public API, spoken as this browser's sign-in. Requests ride on the session cookie, which scripts cannot read; the gateway accepts it only
// together with `headerUI`, which no page of another site can send.
import { type Interceptor, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";
import { BoxService } from "../gen/carrel/v1/boxes_pb";
import { ImageService, TemplateService } from "../gen/carrel/v1/catalog_pb";
import { FileService } from "../gen/carrel/v1/files_pb";
import { NotebookService } from "../gen/carrel/v1/notebooks_pb";
import { NodeService, OperationService, OrgService, TokenService, UserService } from "../gen/carrel/v1/platform_pb";
import { PortService } from "../gen/carrel/v1/ports_pb";
import { ProcessService } from "../gen/carrel/v1/processes_pb";
import { SSHService } from "../gen/carrel/v1/ssh_pb";
import { isSignedOut } from "./errors";
import { signedOut } from "./signin";

/** Every request by this UI that is not a page or a WebSocket has this header; unsafe ones by cookie are refused without it. */
export const headerUI = { "X-Carrel-UI": "1" } as const;

const ourselves: Interceptor = (next) => async (req) => {
  for (const [name, value] of Object.entries(headerUI)) req.header.set(name, value);
  try {
    return await next(req);
  } catch (err) {
    if (isSignedOut(err)) signedOut();
    throw err;
  }
};

const transport = createConnectTransport({
  baseUrl: location.origin,
  useBinaryFormat: true,
  interceptors: [ourselves],
  fetch: (input, init) => fetch(input, { ...init, credentials: "same-origin", redirect: "error" }),
});

/** Clients of every public service. Calls throw ConnectError; `message` of ./errors makes words for people of it. */
export const api = {
  boxes: createClient(BoxService, transport),
  templates: createClient(TemplateService, transport),
  images: createClient(ImageService, transport),
  operations: createClient(OperationService, transport),
  orgs: createClient(OrgService, transport),
  users: createClient(UserService, transport),
  tokens: createClient(TokenService, transport),
  nodes: createClient(NodeService, transport),
  ports: createClient(PortService, transport),
  processes: createClient(ProcessService, transport),
  files: createClient(FileService, transport),
  notebooks: createClient(NotebookService, transport),
  ssh: createClient(SSHService, transport),
};

export type Api = typeof api;

/** A REST path of a box at this origin, such as boxPath(id, "fs/notes.txt"). Fit for fetch (with `headerUI`), for links and for images. */
export function boxPath(box: string, rest: string, query: Record<string, string> = {}): string {
  const search = new URLSearchParams(query).toString();
  return `/v1/boxes/${encodeURIComponent(box)}/${rest.split("/").map(encodeURIComponent).join("/")}${search ? `?${search}` : ""}`;
}

/** The same as a WebSocket URL. The cookie comes along; the gateway checks the page's origin. */
export function boxSocket(box: string, rest: string, query: Record<string, string> = {}): string {
  const url = new URL(boxPath(box, rest, query), location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return url.href;
}
