"""Tests a box's Jupyter server with Debian's packages: plain requests and WebSockets, and Debian's own Jupyter server as a client of a
gateway, which is what `jupyter lab --gateway-url` does. JUPYTER_URL and JUPYTER_TOKEN say where."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid

import requests
import websocket
from jupyter_client.session import Session

URL, TOKEN = os.environ["JUPYTER_URL"], os.environ["JUPYTER_TOKEN"]
PATIENCE = 60


class Server:
    """A Jupyter server, spoken to as Python programs do it."""

    def __init__(self, url, how, token):
        self.url, self.how, self.token = url, how, token
        self.http = requests.Session()
        if how == "token":
            self.http.headers["Authorization"] = f"token {token}"
        elif how == "bearer":
            self.http.headers["Authorization"] = f"Bearer {token}"
        elif how == "query":
            self.http.params = {"token": token}

    def ask(self, method, path, status=200, **kwargs):
        answer = self.http.request(method, self.url + path, timeout=PATIENCE, **kwargs)
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text}"
        assert not answer.cookies, f"a cookie: {answer.cookies}"
        return answer

    def channels(self, kernel):
        address = f"ws{self.url[4:]}api/kernels/{kernel}/channels?session_id={uuid.uuid4()}"
        headers, protocols = [], None
        if self.how == "query":
            address += "&token=" + self.token
        elif self.how == "protocol":
            protocols = ["v1.token.websocket.jupyter.org", "v1.token.websocket.jupyter.org." + self.token]
        else:
            headers = [f"Authorization: {self.how} {self.token}"]
        return websocket.create_connection(address, timeout=PATIENCE, header=headers, subprotocols=protocols)


def meet(channel):
    """Asks the kernel what it is until it answers. Debian's server loses what a client says before it has connected to its gateway."""
    session, answered = Session(), False
    channel.settimeout(5)
    end = time.monotonic() + PATIENCE
    while not answered and time.monotonic() < end:
        message = session.msg("kernel_info_request", {})
        message["channel"] = "shell"
        channel.send(json.dumps(message, default=str))
        try:
            while not answered:
                answered = json.loads(channel.recv())["msg_type"] == "kernel_info_reply"
        except websocket.WebSocketTimeoutException:
            continue
    assert answered, "no answer of the kernel's"
    channel.settimeout(PATIENCE)
    return channel


def execute(channel, code):
    """Runs code and gives what came of it."""
    session = Session()
    message = session.msg("execute_request", {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False})
    message["channel"] = "shell"
    channel.send(json.dumps(message, default=str))
    text, reply, idle = "", None, False
    while not (reply and idle):
        got = json.loads(channel.recv())
        if got["parent_header"].get("msg_id") != message["header"]["msg_id"]:
            continue
        assert got["parent_header"]["session"] == session.session, "the request's own header comes back"
        if got["msg_type"] == "stream":
            text += got["content"]["text"]
        elif got["msg_type"] == "execute_reply":
            reply = got
        elif got["msg_type"] == "status":
            idle = got["content"]["execution_state"] == "idle"
    return text, reply


def programs():
    """Every way to show a token, with and without a subprotocol."""
    kernel = None
    for how in ("token", "bearer", "query"):
        server = Server(URL, how, TOKEN)
        assert "version" in server.ask("GET", "api").json()
        assert "python3" in server.ask("GET", "api/kernelspecs").json()["kernelspecs"]
        answer = server.ask("POST", "api/kernels", 201, json={"name": "python3"})
        kernel = answer.json()["id"]
        assert answer.headers["Location"].endswith("/jupyter/lab/api/kernels/" + kernel), answer.headers
        channel = server.channels(kernel)
        assert execute(channel, "print(6 * 7)")[0] == "42\n"
        if how == "query":
            other = Server(URL, "protocol", TOKEN).channels(kernel)
            assert other.subprotocol == "v1.token.websocket.jupyter.org"
            assert execute(other, "print('by a subprotocol')")[0] == "by a subprotocol\n"
            other.close()
        model = server.ask("GET", "api/kernels/" + kernel).json()
        assert model["connections"] >= 1 and model["execution_state"] in ("idle", "busy"), model
        channel.close()
        server.ask("DELETE", "api/kernels/" + kernel, 204)
        server.ask("GET", "api/kernels/" + kernel, 404)
    nobody = Server(URL, "none", "")
    for path in ("api/kernels", "api/contents", "api/status", "files/x", ""):
        refused = nobody.ask("GET", path, 403).json()
        assert refused["message"] and TOKEN not in str(refused)
    missing = Server(URL.replace("/lab/", "/no-such-box/"), "token", TOKEN)
    assert "no-such-box" in missing.ask("GET", "api/kernels", 404).json()["message"]
    wrong = Server(URL, "token", TOKEN[:-4] + "AAAA")
    assert TOKEN[:-4] not in wrong.ask("GET", "api/kernels", 403).text
    return "requests and websocket"


def conditional():
    """What is cached is asked for by its tag."""
    server = Server(URL, "token", TOKEN)
    server.ask("PUT", "api/contents/tagged.txt", 201, json={"type": "file", "format": "text", "content": "1"})
    first = server.ask("GET", "api/contents/tagged.txt")
    assert first.headers["Content-Security-Policy"] == "sandbox" and first.headers["X-Content-Type-Options"] == "nosniff"
    assert first.headers["Last-Modified"]
    server.ask("GET", "api/contents/tagged.txt", 304, headers={"If-None-Match": first.headers["ETag"]})
    server.ask("PUT", "api/contents/tagged.txt", 200, json={"type": "file", "format": "text", "content": "2"})
    assert server.ask("GET", "api/contents/tagged.txt", headers={"If-None-Match": first.headers["ETag"]}).json()["content"] == "2"
    ranged = server.ask("GET", "files/tagged.txt", 206, headers={"Range": "bytes=0-0"})
    assert ranged.text == "2" and ranged.headers["Content-Security-Policy"] == "sandbox"
    return "tags and ranges"


def gateway():
    """Debian's Jupyter server with the box's as its gateway."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    home = tempfile.mkdtemp()
    env = dict(os.environ, HOME=home, JUPYTER_GATEWAY_AUTH_TOKEN=TOKEN, KERNEL_EXAMPLE="for the kernel")
    env.pop("JUPYTER_TOKEN")
    with open(os.path.join(home, "log"), "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "/usr/bin/jupyter-server", "--no-browser", f"--port={port}", "--ServerApp.token=local", "--ServerApp.allow_root=True",
             "--ServerApp.root_dir=" + home, "--ServerApp.disable_check_xsrf=True", "--gateway-url=" + URL.rstrip("/")],
            env=env, stdout=log, stderr=log)
    local = Server(f"http://127.0.0.1:{port}/", "token", "local")
    try:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                local.http.get(local.url + "api/status", timeout=5)
                break
            except requests.ConnectionError:
                assert process.poll() is None and time.monotonic() < end, open(os.path.join(home, "log")).read()
        assert "python3" in local.http.get(local.url + "api/kernelspecs", timeout=PATIENCE).json()["kernelspecs"]
        answer = local.http.post(local.url + "api/sessions", timeout=PATIENCE, json={"path": "x.ipynb", "type": "notebook", "name": "x", "kernel": {"name": "python3"}})
        assert answer.status_code == 201, answer.text
        session = answer.json()
        kernel = session["kernel"]["id"]
        assert Server(URL, "token", TOKEN).ask("GET", "api/kernels/" + kernel).json()["id"] == kernel, "the kernel is in the box"
        channel = meet(local.channels(kernel))
        text, reply = execute(channel, "import os; print(os.environ.get('KERNEL_EXAMPLE')); 1/0")
        assert text == "for the kernel\n" and reply["content"]["ename"] == "ZeroDivisionError", (text, reply)
        assert local.http.post(local.url + f"api/kernels/{kernel}/interrupt", timeout=PATIENCE).status_code == 204
        assert local.http.post(local.url + f"api/kernels/{kernel}/restart", timeout=PATIENCE).status_code == 200
        channel.close()
        channel = meet(local.channels(kernel))
        assert execute(channel, "print('os' in globals())")[0] == "False\n"
        channel.close()
        assert local.http.delete(local.url + "api/sessions/" + session["id"], timeout=PATIENCE).status_code == 204
        Server(URL, "token", TOKEN).ask("GET", "api/kernels/" + kernel, 404)
    except Exception:
        sys.stderr.write(open(os.path.join(home, "log")).read())
        raise
    finally:
        process.terminate()
        process.wait()
    return "jupyter server --gateway-url"


for one in (programs, conditional, gateway):
    print("ok   ", one(), flush=True)
