// Tests a box's Jupyter server with @jupyterlab/services, as JupyterLab uses it. The tests are in one file and order: each goes on with what the
// ones before left. JUPYTER_URL, JUPYTER_TOKEN and CUT (an address below which /cut cuts every connection to the server, and /gateway restarts the gateway) say where.
import assert from 'node:assert/strict';
import services from '@jupyterlab/services';
import coreutils from '@jupyterlab/coreutils';

const { ServerConnection, KernelManager, KernelSpecManager, SessionManager, ContentsManager, TerminalManager } = services;
coreutils.PageConfig.setOption('appendToken', 'true');
coreutils.PageConfig.setOption('terminalsAvailable', 'true');

// The library's managers take a kernel for ended that is not in the list of kernels, also when that list was made before the kernel was and came
// after it. So that no test depends on which of two answers is the quicker, lists and starts go one after the other here.
let turn = Promise.resolve();
async function inTurn(request) {
  const path = new URL(request.url).pathname;
  if (!/\/api\/(kernels|sessions)$/.test(path)) {
    return fetch(request);
  }
  const answer = turn.then(async () => {
    const response = await fetch(request);
    return new Response(await response.arrayBuffer(), response);
  });
  turn = answer.catch(() => undefined);
  return answer;
}

const settings = ServerConnection.makeSettings({ baseUrl: process.env.JUPYTER_URL, token: process.env.JUPYTER_TOKEN, appendToken: true, fetch: inTurn });
const quiet = console.error;
console.error = (...args) => (/Connection lost|websocket/.test(String(args[0])) ? undefined : quiet(...args));
console.debug = () => undefined;
console.warn = () => undefined;

/** A promise that fails after a while, with what was waited for. */
function within(promise, what, ms = 120_000) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited too long: ${what}`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Waits until a signal's value satisfies a test. */
function until(signal, what, test) {
  return within(
    new Promise(resolve => {
      const slot = (sender, value) => {
        if (test(value, sender)) {
          signal.disconnect(slot);
          resolve(value);
        }
      };
      signal.connect(slot);
    }),
    what,
  );
}

async function run(kernel, code, options = {}) {
  const future = kernel.requestExecute({ code, ...options.request });
  const outputs = [];
  future.onIOPub = msg => {
    outputs.push(msg);
    options.onOutput?.(msg);
  };
  future.onStdin = msg => options.onStdin?.(msg, future);
  const reply = await within(future.done, code);
  return { reply, outputs, text: outputs.filter(m => m.header.msg_type === 'stream').map(m => m.content.text).join('') };
}

const tests = [];
const test = (name, body) => tests.push([name, body]);

const kernels = new KernelManager({ serverSettings: settings });
const specs = new KernelSpecManager({ serverSettings: settings });
const sessions = new SessionManager({ serverSettings: settings, kernelManager: kernels });
const contents = new ContentsManager({ serverSettings: settings });
const terminals = new TerminalManager({ serverSettings: settings });

test('managers get ready', async () => {
  await within(Promise.all([specs.ready, kernels.ready, sessions.ready, terminals.ready]), 'managers');
  assert.ok(specs.specs.kernelspecs.python3, 'the Python kernel');
  assert.equal(specs.specs.default, 'python3');
  assert.equal(specs.specs.kernelspecs.python3.language, 'python');
  const me = await ServerConnection.makeRequest(settings.baseUrl + 'api/me?permissions=' + encodeURIComponent('{"kernels":["execute"]}'), {}, settings);
  const { identity, permissions } = await me.json();
  assert.ok(identity.username && identity.display_name && identity.initials);
  assert.deepEqual(permissions, { kernels: ['execute'] });
});

test('kernel: execute, error, input, comm', async () => {
  const kernel = await kernels.startNew({ name: 'python3' });
  const info = await within(kernel.info, 'kernel info');
  assert.equal(info.language_info.name, 'python');
  let got = await run(kernel, 'print("hello"); 6 * 7');
  assert.equal(got.text, 'hello\n');
  assert.equal(got.outputs.find(m => m.header.msg_type === 'execute_result').content.data['text/plain'], '42');
  assert.equal(got.reply.content.status, 'ok');
  got = await run(kernel, '1/0');
  assert.equal(got.reply.content.ename, 'ZeroDivisionError');
  got = await run(kernel, 'print(input("name? ")[::-1])', {
    onStdin: (msg, future) => future.sendInputReply({ value: 'Ada', status: 'ok' }, msg.header),
  });
  assert.equal(got.text, 'adA\n');

  // A comm with buffers, both ways.
  await run(kernel, [
    'def target(comm, msg):',
    '    @comm.on_msg',
    '    def _(m): comm.send({"n": len(m["buffers"])}, buffers=[bytes(b)[::-1] for b in m["buffers"]])',
    'get_ipython().kernel.comm_manager.register_target("t", target)',
  ].join('\n'));
  const comm = kernel.createComm('t');
  const answer = new Promise(resolve => { comm.onMsg = resolve; });
  await comm.open({}).done;
  comm.send({ x: 1 }, undefined, [new Uint8Array([1, 2, 255]).buffer]);
  const echoed = await within(answer, 'the comm');
  assert.equal(echoed.content.data.n, 1);
  assert.deepEqual([...new Uint8Array(echoed.buffers[0].buffer ?? echoed.buffers[0], echoed.buffers[0].byteOffset ?? 0, 3)], [255, 2, 1]);

  const completions = await within(kernel.requestComplete({ code: 'impo', cursor_pos: 4 }), 'completion');
  assert.ok(completions.content.matches.includes('import'));
  const inspected = await within(kernel.requestInspect({ code: 'print', cursor_pos: 5, detail_level: 0 }), 'inspection');
  assert.equal(inspected.content.found, true);
  await kernel.shutdown();
});

test('kernel: interrupt, restart, status', async () => {
  const kernel = await kernels.startNew({ name: 'python3' });
  await within(kernel.info, 'kernel info');
  let got = run(kernel, 'import time; print("sleeps", flush=True); time.sleep(300)', {
    onOutput: msg => { if (msg.header.msg_type === 'stream') { void kernel.interrupt(); } },
  });
  assert.equal((await got).reply.content.ename, 'KeyboardInterrupt');
  await run(kernel, 'kept = 1');
  const second = kernels.connectTo({ model: kernel.model });
  await within(second.info, 'the second client');
  await within(kernel.restart(), 'restart');
  await within(kernel.info, 'kernel info');
  got = await run(kernel, 'print("kept" in globals())');
  assert.equal(got.text, 'False\n');
  got = await run(second, 'print("the second is there too")');
  assert.equal(got.text, 'the second is there too\n');
  await kernels.refreshRunning();
  assert.ok([...kernels.running()].some(k => k.id === kernel.id));
  const dead = until(second.statusChanged, 'the second hears of the end', status => status === 'dead');
  await kernel.shutdown();
  await dead;
  await kernels.refreshRunning();
  assert.ok(![...kernels.running()].some(k => k.id === kernel.id));
});

test('contents: notebooks, files, directories', async () => {
  const dir = await contents.newUntitled({ path: '', type: 'directory' });
  assert.equal(dir.type, 'directory');
  const work = await contents.rename(dir.path, 'work ü 🐍');
  assert.equal(work.path, 'work ü 🐍');
  const nb = await contents.newUntitled({ path: work.path, type: 'notebook' });
  assert.equal(nb.path, 'work ü 🐍/Untitled.ipynb');
  const empty = await contents.get(nb.path);
  assert.equal(empty.content.nbformat, 4);
  const cell = { cell_type: 'code', id: 'c1', source: 'a\nb\u2028c', metadata: {}, execution_count: 1, outputs: [{ output_type: 'stream', name: 'stdout', text: 'x\ny\n' }] };
  const saved = await contents.save(nb.path, { type: 'notebook', format: 'json', content: { ...empty.content, cells: [cell] } });
  assert.equal(saved.content ?? null, null);
  const read = await contents.get(nb.path);
  assert.equal(read.content.cells[0].source, 'a\nb\u2028c');
  assert.equal(read.content.cells[0].outputs[0].text, 'x\ny\n');
  assert.equal(read.content.cells[0].metadata.trusted, true);
  assert.equal(read.last_modified, saved.last_modified);

  const copy = await contents.copy(nb.path, work.path);
  assert.equal(copy.name, 'Untitled-Copy1.ipynb');
  const checkpoint = await contents.createCheckpoint(nb.path);
  await contents.save(nb.path, { type: 'notebook', format: 'json', content: { ...empty.content, cells: [] } });
  assert.equal((await contents.listCheckpoints(nb.path))[0].id, checkpoint.id);
  await contents.restoreCheckpoint(nb.path, checkpoint.id);
  assert.equal((await contents.get(nb.path)).content.cells.length, 1);
  await contents.deleteCheckpoint(nb.path, checkpoint.id);
  assert.deepEqual(await contents.listCheckpoints(nb.path), []);

  await contents.save('work ü 🐍/t.txt', { type: 'file', format: 'text', content: 'text ✓\n' });
  await contents.save('work ü 🐍/b.bin', { type: 'file', format: 'base64', content: Buffer.from([0, 255, 1]).toString('base64') });
  assert.equal((await contents.get('work ü 🐍/t.txt')).content, 'text ✓\n');
  const bin = await contents.get('work ü 🐍/b.bin');
  assert.equal(bin.format, 'base64');
  assert.deepEqual([...Buffer.from(bin.content, 'base64')], [0, 255, 1]);
  // An upload in chunks, as JupyterLab does it for what is large.
  for (const [chunk, text] of [[1, 'one'], [2, 'two'], [-1, 'three']]) {
    await contents.save('work ü 🐍/chunks.txt', { type: 'file', format: 'base64', chunk, content: Buffer.from(text).toString('base64') });
  }
  assert.equal((await contents.get('work ü 🐍/chunks.txt')).content, 'onetwothree');
  const listing = await contents.get(work.path);
  assert.deepEqual(listing.content.map(m => m.name).sort(), ['Untitled-Copy1.ipynb', 'Untitled.ipynb', 'b.bin', 'chunks.txt', 't.txt']);
  const url = await contents.getDownloadUrl('work ü 🐍/t.txt');
  const response = await ServerConnection.makeRequest(url, {}, settings);
  assert.equal(await response.text(), 'text ✓\n');
  await assert.rejects(contents.get('work ü 🐍/none.txt'), error => error.response.status === 404 && /does not exist/.test(error.message));
  await assert.rejects(contents.rename('work ü 🐍/t.txt', 'work ü 🐍/b.bin'), error => error.response.status === 409);
  await assert.rejects(contents.get('.ssh'), error => error.response.status === 404);
  await contents.delete('work ü 🐍/t.txt');
  await assert.rejects(contents.get('work ü 🐍/t.txt'), error => error.response.status === 404);
});

test('sessions: a notebook and its kernel', async () => {
  const path = 'work ü 🐍/Untitled.ipynb';
  const session = await sessions.startNew({ path, name: 'Untitled.ipynb', type: 'notebook', kernel: { name: 'python3' } });
  const got = await run(session.kernel, 'import os; print(os.path.basename(os.getcwd()))');
  assert.equal(got.text, 'work ü 🐍\n', 'the kernel is where its notebook is');
  const again = await sessions.startNew({ path, name: 'Untitled.ipynb', type: 'notebook', kernel: { name: 'python3' } });
  assert.equal(again.kernel.id, session.kernel.id, 'one kernel for a notebook');
  await session.setPath('work ü 🐍/renamed.ipynb');
  assert.equal((await sessions.findByPath('work ü 🐍/renamed.ipynb')).id, session.id);
  const before = session.kernel.id;
  await session.changeKernel({ name: 'python3' });
  assert.notEqual(session.kernel.id, before);
  await kernels.refreshRunning();
  assert.ok(![...kernels.running()].some(k => k.id === before), 'the kernel that was left is shut down');
  assert.equal((await run(session.kernel, 'print(1)')).text, '1\n');
  await session.shutdown();
  await sessions.refreshRunning();
  assert.equal([...sessions.running()].length, 0);
});

test('terminals', async () => {
  const first = await terminals.startNew({ cwd: 'work ü 🐍' });
  let text = '';
  const collect = (_, msg) => { if (msg.type === 'stdout') { text += msg.content[0]; } };
  const seen = (what, pattern) => within((async () => {
    while (!pattern.test(text)) { await new Promise(resolve => setTimeout(resolve, 20)); }
  })(), `${what} in ${JSON.stringify(text)}`);
  first.messageReceived.connect(collect);
  first.send({ type: 'set_size', content: [33, 101, 400, 800] });
  first.send({ type: 'stdin', content: ['stty size; basename "$PWD"; echo é🐍\r'] });
  await seen('size and place', /33 101\r\n[^]*work ü 🐍\r\n[^]*é🐍\r\n/);
  // Another client sees the same, from the beginning.
  const second = terminals.connectTo({ model: { name: first.name } });
  text = '';
  first.messageReceived.disconnect(collect);
  second.messageReceived.connect(collect);
  await seen('replay', /33 101\r\n/);
  // Connections that break come back by themselves, to the same shell.
  second.send({ type: 'stdin', content: ['x=still-here\r'] });
  await seen('the variable', /x=still-here/);
  const back = until(second.connectionStatusChanged, 'the terminal is connected again', status => status === 'connected');
  await fetch(process.env.CUT + '/cut');
  await back;
  text = '';
  second.send({ type: 'stdin', content: ['echo "<$x>"\r'] });
  await seen('the same shell', /<still-here>/);
  await terminals.refreshRunning();
  assert.ok([...terminals.running()].some(m => m.name === first.name));
  const closed = until(first.disposed, 'the first terminal hears of the end', () => true);
  second.send({ type: 'stdin', content: ['exit\r'] });
  await closed;
  const third = await terminals.startNew();
  await terminals.shutdown(third.name);
  await terminals.refreshRunning();
  assert.equal([...terminals.running()].length, 0);
});

for (const [what, how] of [['the connection is cut', '/cut'], ['the gateway is killed and started again', '/gateway']]) test(`nothing of a cell is lost when ${what}`, async () => {
  const kernel = await kernels.startNew({ name: 'python3' });
  await within(kernel.info, 'kernel info');
  let cut;
  const got = await run(kernel, [
    'import time, os',
    'print("begins", flush=True)',
    'while not os.path.exists(os.path.expanduser("~/go-on")): time.sleep(0.02)',
    'for i in range(100): print(i, flush=True)',
  ].join('\n'), {
    onOutput: msg => {
      if (msg.header.msg_type === 'stream' && !cut) {
        cut = (async () => {
          const back = until(kernel.connectionStatusChanged, 'the kernel is connected again', status => status === 'connected');
          await fetch(process.env.CUT + how);
          await back;
        })();
        void cut.then(() => contents.save('go-on', { type: 'file', format: 'text', content: '' }));
      }
    },
  });
  await within(cut, 'the connection');
  await contents.delete('go-on');
  assert.equal(got.reply.content.status, 'ok');
  assert.equal(got.text, ['begins', ...Array(100).keys(), ''].join('\n'));

  await kernel.shutdown();
});

let failed = 0;
for (const [name, body] of tests) {
  const began = Date.now();
  try {
    await within(body(), name, 300_000);
    console.log(`ok    ${name} (${Date.now() - began} ms)`);
  } catch (error) {
    failed++;
    console.log(`FAIL  ${name}: ${error.stack}`);
  }
}
process.exit(failed ? 1 : 0);
