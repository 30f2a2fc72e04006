import { type FormEvent, useState } from "react";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { Token } from "../gen/carrel/v1/platform_pb";
import { api } from "../lib/api";
import { absolute, when } from "../lib/format";
import { type Loaded, useLoad } from "../lib/load";
import { useSession } from "../lib/session";
import { useTitle } from "../lib/title";
import { Ago } from "../ui/bits";
import { Button, IconButton, Loading } from "../ui/button";
import { Confirm, Dialog } from "../ui/dialog";
import { ErrorBoundary, Problem } from "../ui/error";
import { Field, SelectField } from "../ui/field";
import { toast, toastError } from "../ui/toast";

export default function AccountPage() {
  useTitle("Account");
  const { user, orgs, role, org } = useSession();
  return (
    <div className="page">
      <header className="page-head">
        <h1>Account</h1>
      </header>
      <p className="soft">
        Signed in as <strong>{user.name}</strong>, {role} of {org.name}
        {orgs.length > 1 && ` and ${orgs.length - 1} more`}
        {user.operator && ", operator of this Carrel"}.
      </p>
      <ErrorBoundary what="Your tokens">
        <Tokens />
      </ErrorBoundary>
      <ErrorBoundary what="Your SSH keys">
        <SSHKeys />
      </ErrorBoundary>
    </div>
  );
}

const day = 86_400_000;

/** What the gateway calls the token of a sign-in; there are many, and each ends by itself. */
const signIn = "sign-in with a browser";

function Tokens() {
  const tokens = useLoad((signal) => api.tokens.listTokens({}, { signal }), []);
  const [making, setMaking] = useState(false);
  const [revoking, setRevoking] = useState<Token>();
  const list = (tokens.data?.tokens ?? []).filter((t) => !t.revokeTime && !((when(t.expireTime)?.getTime() ?? Infinity) < Date.now()));
  const signIns = list.filter((t) => t.description === signIn);
  const item = (t: Token) => (
    <li key={t.id} className="item">
      <div>
        <strong>{t.description || "No description"}</strong>
        <p className="soft small">
          Made <Ago time={t.createTime} />, {t.expireTime ? <>ends {absolute(when(t.expireTime)!)}</> : "never ends"}
        </p>
      </div>
      <IconButton icon="delete" label={`Revoke ${t.description || t.id}`} onClick={() => setRevoking(t)} />
    </li>
  );
  return (
    <section className="card" aria-labelledby="tokens">
      <header className="card-head">
        <div>
          <h2 id="tokens">API tokens</h2>
          <p className="soft">For the command line and for programs. Whoever has one can do what you can.</p>
        </div>
        <Button small icon="plus" onClick={() => setMaking(true)}>
          New token
        </Button>
      </header>
      <List loaded={tokens} what="tokens" empty={list.length === 0}>
        {list.filter((t) => t.description !== signIn).map(item)}
      </List>
      {signIns.length > 0 && (
        <details className="sign-ins">
          <summary>{signIns.length === 1 ? "One sign-in with a browser" : `${signIns.length} sign-ins with a browser`}</summary>
          <ul className="items">{signIns.map(item)}</ul>
        </details>
      )}
      {making && <NewToken onClose={() => setMaking(false)} onMade={tokens.reload} />}
      {revoking && (
        <Confirm
          title="Revoke this token?"
          text={`“${revoking.description || revoking.id}” is good for nothing from then on. Sign-ins and open connections that came from it end.`}
          verb="Revoke"
          onClose={() => setRevoking(undefined)}
          act={async () => {
            await api.tokens.revokeToken({ id: revoking.id });
            toast("Token revoked");
            tokens.reload();
          }}
        />
      )}
    </section>
  );
}

function NewToken({ onClose, onMade }: { onClose: () => void; onMade: () => void }) {
  const [description, setDescription] = useState("");
  const [days, setDays] = useState("1");
  const [secret, setSecret] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const submit = async (e: FormEvent) => {
    e.preventDefault();
    setBusy(true);
    setError(undefined);
    try {
      const expireTime = days ? { expireTime: timestampFromMs(Date.now() + Number(days) * day) } : {};
      setSecret((await api.tokens.createToken({ description, ...expireTime })).secret);
      onMade();
    } catch (err) {
      setError(err);
    }
    setBusy(false);
  };
  return (
    <Dialog title={secret ? "Your new token" : "New token"} onClose={onClose}>
      {secret ? (
        <>
          <p>Copy it now: it is shown this once.</p>
          <div className="secret">
            <code>{secret}</code>
            <IconButton icon="copy" label="Copy the token" onClick={() => void navigator.clipboard.writeText(secret).then(() => toast("Copied"), toastError)} />
          </div>
          <div className="dialog-buttons">
            <Button kind="primary" onClick={onClose}>
              Done
            </Button>
          </div>
        </>
      ) : (
        <form onSubmit={(e) => void submit(e)}>
          <Field label="What is it for?" value={description} onChange={(e) => setDescription(e.target.value)} required data-focus placeholder="laptop, CI, …" />
          <SelectField label="Good for" value={days} onChange={(e) => setDays(e.target.value)} hint="A token made while signed in here ends at the latest when the sign-in does.">
            <option value="1">a day</option>
            <option value="30">30 days</option>
            <option value="365">a year</option>
            <option value="">as long as possible</option>
          </SelectField>
          {error !== undefined && <Problem title="No token was made" error={error} />}
          <div className="dialog-buttons">
            <Button onClick={onClose}>Cancel</Button>
            <Button type="submit" kind="primary" busy={busy} disabled={!description.trim()}>
              Make token
            </Button>
          </div>
        </form>
      )}
    </Dialog>
  );
}

function SSHKeys() {
  const keys = useLoad((signal) => api.ssh.listSSHKeys({}, { signal }), []);
  const [adding, setAdding] = useState(false);
  const [removing, setRemoving] = useState<{ id: string; name: string }>();
  return (
    <section className="card" aria-labelledby="keys">
      <header className="card-head">
        <div>
          <h2 id="keys">SSH keys</h2>
          <p className="soft">To log in to your boxes with ssh and with editors that use it.</p>
        </div>
        <Button small icon="plus" onClick={() => setAdding(true)}>
          Add a key
        </Button>
      </header>
      <List loaded={keys} what="SSH keys" empty={keys.data?.keys.length === 0}>
        {keys.data?.keys.map((k) => (
          <li key={k.id} className="item">
            <div>
              <strong>{k.name}</strong>
              <p className="soft small">
                <code>{k.fingerprint}</code>, added <Ago time={k.createTime} />
              </p>
            </div>
            <IconButton icon="delete" label={`Remove ${k.name}`} onClick={() => setRemoving(k)} />
          </li>
        ))}
      </List>
      {adding && <AddKey onClose={() => setAdding(false)} onAdded={keys.reload} />}
      {removing && (
        <Confirm
          title={`Remove ${removing.name}?`}
          text="Nobody can log in with it any more, and connections that use it end."
          verb="Remove"
          onClose={() => setRemoving(undefined)}
          act={async () => {
            await api.ssh.removeSSHKey({ id: removing.id });
            toast("Key removed");
            keys.reload();
          }}
        />
      )}
    </section>
  );
}

function AddKey({ onClose, onAdded }: { onClose: () => void; onAdded: () => void }) {
  const [key, setKey] = useState("");
  const [name, setName] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const submit = async (e: FormEvent) => {
    e.preventDefault();
    setBusy(true);
    try {
      await api.ssh.addSSHKey({ publicKey: key.trim(), name });
      toast("Key added");
      onAdded();
      onClose();
    } catch (err) {
      setError(err);
      setBusy(false);
    }
  };
  return (
    <Dialog title="Add an SSH key" onClose={onClose}>
      <form onSubmit={(e) => void submit(e)}>
        <div className="field">
          <label htmlFor="ssh-key">Public key</label>
          <textarea id="ssh-key" rows={4} value={key} onChange={(e) => setKey(e.target.value)} placeholder="ssh-ed25519 AAAA…" spellCheck={false} aria-describedby="ssh-key-more" data-focus />
          <p id="ssh-key-more" className="field-hint">
            The one line of a file such as ~/.ssh/id_ed25519.pub.
          </p>
        </div>
        <Field label="Name" value={name} onChange={(e) => setName(e.target.value)} placeholder="from the key" />
        {error !== undefined && <Problem title="The key was not added" error={error} />}
        <div className="dialog-buttons">
          <Button onClick={onClose}>Cancel</Button>
          <Button type="submit" kind="primary" busy={busy} disabled={!key.trim()}>
            Add key
          </Button>
        </div>
      </form>
    </Dialog>
  );
}

function List({ loaded, what, empty, children }: { loaded: Loaded<unknown>; what: string; empty: boolean; children: React.ReactNode }) {
  if (loaded.error !== undefined && !loaded.data) return <Problem title={`Your ${what} cannot be shown`} error={loaded.error} retry={loaded.reload} />;
  if (!loaded.data) return <Loading />;
  if (empty) return <p className="soft none">No {what} yet.</p>;
  return <ul className="items">{children}</ul>;
}
