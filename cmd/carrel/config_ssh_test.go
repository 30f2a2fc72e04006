package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/client"
)

func TestTheBlockOfSSHConfigIsWrittenOnceAndTakenOutWhole(t *testing.T) {
	const block = blockBegin + "\nHost *.carrel\n" + blockEnd + "\n"
	for _, own := range []string{"", "Host a\n  User b\n", "Host a\n  User b"} {
		once, err := replaceBlock(own, block)
		require.NoError(t, err)
		require.Contains(t, once, block)
		twice, err := replaceBlock(once, block)
		require.NoError(t, err)
		require.Equal(t, once, twice, "to write it again changes nothing")
		gone, err := replaceBlock(once, "")
		require.NoError(t, err)
		require.Equal(t, own, gone)
	}
	between := "Host a\n" + block + "Host b\n"
	changed, err := replaceBlock(between, blockBegin+"\nnew\n"+blockEnd+"\n")
	require.NoError(t, err)
	require.Equal(t, "Host a\n"+blockBegin+"\nnew\n"+blockEnd+"\nHost b\n", changed, "it stays where somebody put it")
	for _, broken := range []string{"Host a\n" + blockBegin + "\nHost b\n", "Host a\n" + blockEnd + "\n"} {
		_, err := replaceBlock(broken, block)
		require.ErrorContains(t, err, "take")
	}
}

func TestAnSSHConfigThatIsALinkStaysOne(t *testing.T) {
	dir := t.TempDir()
	kept := filepath.Join(dir, "dotfiles")
	require.NoError(t, os.WriteFile(kept, []byte("Host a\n"), 0o644))
	require.NoError(t, writeSSHConfig(kept, []byte("Host b\n")))
	info, err := os.Stat(kept)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o644), info.Mode().Perm(), "the mode is kept")
	fresh := filepath.Join(dir, ".ssh", "config")
	require.NoError(t, writeSSHConfig(fresh, []byte("Host b\n")))
	info, err = os.Stat(fresh)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
}

func TestBoxLogin(t *testing.T) {
	id := "b0123456789abcdefghi"
	for _, row := range []struct{ name, org, want string }{
		{"dev", "", "dev"}, {"dev", "team", "dev.team"}, {"dev.carrel", "team", "dev.team"}, {"dev.other.carrel", "team", "dev.other"}, {id, "team", id}, {id + ".carrel", "", id},
	} {
		require.Equal(t, row.want, boxLogin(row.name, row.org), "%s in %q", row.name, row.org)
	}
}

func TestTheSSHKeyIsMadeOnceAndForItsOwnerAlone(t *testing.T) {
	s := &sshAccess{dir: t.TempDir(), context: client.Context{URL: "http://localhost"}}
	first, err := s.ensureKey()
	require.NoError(t, err)
	again, err := s.ensureKey()
	require.NoError(t, err)
	require.Equal(t, first.Marshal(), again.Marshal())
	info, err := os.Stat(s.key())
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	require.False(t, s.certificateGood(first, 0), "there is none yet")
	require.NoError(t, os.WriteFile(s.certificate(), []byte("ssh-ed25519-cert-v01@openssh.com AAAA\n"), 0o600))
	require.False(t, s.certificateGood(first, 0), "one that cannot be read")
	require.False(t, s.readGateway())
	require.NoError(t, os.WriteFile(s.key(), []byte("no key"), 0o600))
	_, err = s.ensureKey()
	require.ErrorContains(t, err, "another one is made")
}

// Another Carrel at the same address, or another token, makes what was learned before worthless.
func TestWhatSSHKnowsIsOfOneCarrelAndOneToken(t *testing.T) {
	s := &sshAccess{dir: t.TempDir(), context: client.Context{URL: "http://localhost", Token: "one"}}
	s.gateway = sshGateway{Host: "localhost", Port: "7022", Time: time.Now(), From: s.learnedFrom()}
	data, err := json.Marshal(s.gateway)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "gateway.json"), data, 0o600))
	require.NoError(t, os.WriteFile(s.knownHosts(), nil, 0o600))
	require.True(t, s.readGateway())
	for _, context := range []client.Context{{URL: "http://localhost", Token: "two"}, {URL: "http://elsewhere", Token: "one"}} {
		other := &sshAccess{dir: s.dir, context: context}
		require.False(t, other.readGateway())
		require.Empty(t, other.gateway.Port, "it is not used when nobody answers either")
	}
}

func TestShellWord(t *testing.T) {
	require.Equal(t, "/usr/bin/carrel", shellWord("/usr/bin/carrel"))
	require.Equal(t, "'/my tools/carrel'", shellWord("/my tools/carrel"))
	require.Equal(t, "carrel", shellWord("/it's/carrel"))
	require.Equal(t, "/50%%/carrel", shellWord("/50%/carrel"))
	require.Equal(t, `"/a b/50%%"`, quotePath("/a b/50%"))
}
