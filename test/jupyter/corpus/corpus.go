// Package corpus has what a client of Jupyter does with a kernel, as a list of steps, and compares what two servers answer: one of Carrel's,
// and Debian's real one. It speaks Jupyter's REST and both of its WebSocket protocols by itself, so that nothing is compared with our own code. It
// must not know anything of Carrel but an address and a token.
package corpus

// Step is one thing that a client does.
type Step struct {
	Name string
	// Code is executed, unless Request names another type of request, with Content.
	Code    string
	Request string
	Content map[string]any
	Channel string // of the request; empty: shell
	// Options are added to the content of an execute_request.
	Options map[string]any
	// Answers are given to the input requests that come, in their order.
	Answers []string
	// Interrupt has the kernel interrupted when this text came out.
	Interrupt string
	// Then is executed at once after Code, before that has ended; both are waited for.
	Then string
	// Buffers go with the request.
	Buffers [][]byte
	// Quiet says that no reply comes: the kernel says on iopub that it is idle, and no more.
	Quiet bool
}

func run(name, code string) Step { return Step{Name: name, Code: code} }

func ask(name, request string, content map[string]any) Step {
	return Step{Name: name, Request: request, Content: content}
}

// pixel is a PNG.
const pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

// Steps are done in this order in one kernel.
var Steps = []Step{
	ask("kernel info", "kernel_info_request", map[string]any{}),
	run("stream", "print('hello')"),
	run("streams of both kinds", "import sys\nprint('out')\nsys.stdout.flush()\nprint('err', file=sys.stderr)\nsys.stderr.flush()\nprint('out again')"),
	run("no output", "a = 1"),
	run("result", "6 * 7"),
	run("result of several kinds", "class Both:\n    def _repr_html_(self): return '<b>x</b>'\n    def _repr_latex_(self): return '$x$'\n    def __repr__(self): return 'x'\nBoth()"),
	run("display", "from IPython.display import *\ndisplay('text', 5, [1, 2])"),
	run("html", "HTML('<p onclick=\"alert(1)\">hi<script>alert(1)</script></p>')"),
	run("markdown", "Markdown('# t\\n\\n*x* <b>y</b>')"),
	run("latex", "Latex(r'\\begin{eqnarray} a & b \\end{eqnarray}')"),
	run("math", "Math(r'\\frac{1}{2}')"),
	run("svg", "SVG('<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"4\" height=\"4\"><script>1</script><rect width=\"4\" height=\"4\"/></svg>')"),
	run("png", "import base64\nImage(base64.b64decode('"+pixel+"'), width=10, alt='one pixel')"),
	run("json", "JSON({'a': [1, 2.5, None, True, 'é'], 'big': 2**70}, expanded=True, root='r')"),
	run("geojson", "GeoJSON({'type': 'Point', 'coordinates': [1.5, -2e-7]})"),
	run("javascript", "Javascript('alert(1)')"),
	run("a bundle with a type of its own", "display({'application/vnd.example.v1+json': {'x': 1.0, 'y': 1e300}, 'text/plain': 'p', 'text/x-unknown': 'u'}, raw=True, metadata={'application/vnd.example.v1+json': {'m': 1}})"),
	run("pretty", "Pretty('{ pretty }')"),
	run("code", "Code('def f(): pass', language='python')"),
	run("file link", "FileLink('/no/such/file.txt')"),
	run("iframe", "IFrame('https://example.org/?a=1&b=2', width=1, height=2)"),
	run("table", "class T:\n    def _repr_html_(self): return '<table>' + ''.join(f'<tr><td>{i}</td></tr>' for i in range(300)) + '</table>'\n    def __repr__(self): return 't'\nT()"),
	run("mimebundle with metadata", "class M:\n    def _repr_mimebundle_(self, include=None, exclude=None): return {'text/plain': 'm', 'image/svg+xml': '<svg/>'}, {'image/svg+xml': {'isolated': True}}\nM()"),
	run("display id", "h = display('first', display_id='an-id')"),
	run("update of a display", "h.update('second')"),
	run("update in its own cell", "g = display(1, display_id='g')\nfor i in range(3): g.update(i)"),
	run("update of what is not there", "update_display('lost', display_id='nobody')"),
	run("clear output", "print('gone')\nclear_output()\nprint('stays')"),
	run("clear output and wait", "for i in range(3):\n    clear_output(wait=True)\n    display(i)"),
	run("progress", "for i in range(5): print(f'\\r{i}', end='', flush=True)"),
	run("ansi", "print('\\x1b[31mred\\x1b[0m \\x1b[1;38;5;208mcolour\\x1b[0m')"),
	run("error", "1/0"),
	run("error in functions", "def f(n):\n    return g(n)\ndef g(n):\n    raise ValueError(n)\nf('é\\u202e')"),
	run("error with a cause", "try:\n    {}['k']\nexcept KeyError as e:\n    raise RuntimeError('outer') from e"),
	run("error in the handling of another", "try:\n    1/0\nexcept ZeroDivisionError:\n    undefined_name"),
	run("syntax error", "for in x:"),
	run("indentation error", "if True:\nprint(1)"),
	run("error group", "raise ExceptionGroup('several', [ValueError(1), TypeError('t')])"),
	run("error after output", "print('before')\ndisplay('shown')\nassert False, 'message'"),
	run("interrupt raised", "raise KeyboardInterrupt"),
	run("system exit", "import sys\nsys.exit(3)"),
	run("warning", "import warnings\nwarnings.warn('careful', DeprecationWarning)\nwarnings.warn('very')"),
	run("log", "import logging\nlogging.getLogger('x').error('logged %s', 1)"),
	run("shell command", "!printf 'a\\nb\\n'; echo e >&2; exit 3"),
	run("cell magic", "%%sh\necho from sh"),
	run("capture", "%%capture c\nprint('caught')\ndisplay(1)"),
	run("captured", "c.show()"),
	run("pager", "len?"),
	run("next input", "get_ipython().set_next_input('x = 1')"),
	run("threads", "import threading\nt = threading.Thread(target=lambda: print('from a thread'))\nt.start(); t.join()"),
	run("await", "import asyncio\nawait asyncio.sleep(0)\nprint('awaited')"),
	run("gather", "async def one(n):\n    await asyncio.sleep(0)\n    return n\nawait asyncio.gather(one(1), one(2))"),
	run("many lines", "for i in range(5000): print(i)"),
	run("big output", "print('x' * 3_000_000)"),
	run("big result", "'y' * 400_000"),
	run("big display", "display({'text/plain': 'z', 'application/json': list(range(50_000))}, raw=True)"),
	run("unicode", "print('é ß 漢字 ελληνικά עברית العربية')"),
	run("astral", "print('🐍 𝔘𝔫𝔦 👩‍👩‍👧‍👦 \\U0001F9EA')"),
	run("bidi", "print('a\\u202eb\\u2066c\\u2069\\u200fd')"),
	run("control", "print('nul \\0 bell \\a back \\b del \\x7f c1 \\x9b31m end')"),
	run("line separators", "print('a\\u2028b\\u2029c\\x85d\\r\\ne')"),
	run("unicode result", "{'ключ': '値', '\\u202e': '\\ud83d'.encode('utf-8', 'replace')}"),
	run("unicode error", "raise Exception('漢字 🐍')"),
	{Name: "input", Code: "n = input('name? ')\nprint('hello', n)", Answers: []string{"Ada 🐍"}},
	{Name: "password", Code: "import getpass\np = getpass.getpass('secret: ')\nprint(len(p))", Answers: []string{"hunter2"}},
	{Name: "several inputs", Code: "print(input(), input('b'), sep='|')", Answers: []string{"1", ""}},
	{Name: "input that is not allowed", Code: "input('x')", Options: map[string]any{"allow_stdin": false}},
	{Name: "interrupt", Code: "import threading, time\nthreading.Timer(1, lambda: print('sleeping', flush=True)).start(); time.sleep(300)", Interrupt: "sleeping"},
	{Name: "interrupt that is caught", Code: "try:\n    threading.Timer(1, lambda: print('waiting', flush=True)).start(); time.sleep(300)\nexcept KeyboardInterrupt:\n    print('caught')", Interrupt: "waiting"},
	{Name: "queue", Code: "time.sleep(0.1)\nprint('one')", Then: "print('two')"},
	{Name: "queue that an error ends", Code: "time.sleep(3)\n1/0", Then: "print('never')"},
	{Name: "no stop on error", Code: "1/0", Options: map[string]any{"stop_on_error": false}, Then: "print('still')"},
	{Name: "silent", Code: "print('seen')\n5", Options: map[string]any{"silent": true}},
	{Name: "no history", Code: "'not kept'", Options: map[string]any{"store_history": false}},
	{Name: "expressions", Code: "v = 3", Options: map[string]any{"user_expressions": map[string]any{"good": "v + 1", "bad": "1/0", "rich": "HTML('<i>')"}}},
	{Name: "empty", Code: ""},
	{Name: "metadata of a cell", Code: "get_ipython().parent_header['metadata'].get('cellId')"},
	ask("completion", "complete_request", map[string]any{"code": "import os; os.pa", "cursor_pos": 16}),
	ask("completion after an astral character", "complete_request", map[string]any{"code": "s='🐍'; s.upp", "cursor_pos": 12}),
	ask("completion of nothing", "complete_request", map[string]any{"code": "zzz_nothing", "cursor_pos": 11}),
	ask("inspection", "inspect_request", map[string]any{"code": "f(", "cursor_pos": 2, "detail_level": 0}),
	ask("inspection in detail", "inspect_request", map[string]any{"code": "f", "cursor_pos": 1, "detail_level": 1}),
	ask("inspection of nothing", "inspect_request", map[string]any{"code": "zzz", "cursor_pos": 3, "detail_level": 0}),
	ask("complete code", "is_complete_request", map[string]any{"code": "x = 1"}),
	ask("incomplete code", "is_complete_request", map[string]any{"code": "for i in range(3):"}),
	ask("invalid code", "is_complete_request", map[string]any{"code": "x = = 1"}),
	ask("history", "history_request", map[string]any{"hist_access_type": "tail", "n": 5, "output": false, "raw": true}),
	ask("history by pattern", "history_request", map[string]any{"hist_access_type": "search", "pattern": "print*", "n": 3, "output": true, "raw": true, "unique": true}),
	run("a comm of the kernel's", "from ipykernel.comm import Comm\ncomm = Comm(target_name='t', data={'a': 1}, metadata={'m': 2}, buffers=[b'\\x00\\x01\\xff', b''], comm_id='comm-1')\nseen = []\n@comm.on_msg\ndef _(m):\n    seen.append((m['content']['data'], [bytes(b) for b in m['buffers']]))\n    comm.send({'echo': m['content']['data']}, buffers=m['buffers'])"),
	ask("comm info", "comm_info_request", map[string]any{}),
	ask("comm info of a target", "comm_info_request", map[string]any{"target_name": "nothing"}),
	{Name: "comm message with buffers", Request: "comm_msg", Quiet: true, Content: map[string]any{"comm_id": "comm-1", "data": map[string]any{"x": "é"}}, Buffers: [][]byte{{0, 1, 2, 255}, {}, []byte("text")}},
	run("what the comm saw", "seen"),
	run("a widget's target", "def target(comm, msg):\n    comm.send({'opened': msg['content']['data']})\n    @comm.on_close\n    def _(m): print('closed')\nget_ipython().kernel.comm_manager.register_target('mine', target)"),
	{Name: "comm opened by the client", Request: "comm_open", Quiet: true, Content: map[string]any{"comm_id": "comm-2", "target_name": "mine", "data": map[string]any{"k": []any{1, nil}}}},
	{Name: "comm closed by the client", Request: "comm_close", Quiet: true, Content: map[string]any{"comm_id": "comm-2", "data": map[string]any{}}},
	{Name: "comm for an unknown target", Request: "comm_open", Quiet: true, Content: map[string]any{"comm_id": "comm-3", "target_name": "unknown", "data": map[string]any{}}},
	run("a comm that closes", "comm.close(data={'bye': 1})"),
	{Name: "large buffers", Code: "big = Comm(target_name='t', comm_id='comm-4', buffers=[bytes(range(256)) * 4000])\nbig.close()"},
	{Name: "on the control channel", Request: "kernel_info_request", Channel: "control", Content: map[string]any{}},
	{Name: "debugger's information", Request: "debug_request", Channel: "control", Content: map[string]any{"seq": 1, "type": "request", "command": "debugInfo"}},
	run("the last", "print('end')"),
}
