package carrel

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestIDs(t *testing.T) {
	kinds := map[byte]func() string{
		'o': func() string { return string(NewOrgID()) }, 'u': func() string { return string(NewUserID()) }, 't': func() string { return string(NewTokenID()) },
		'm': func() string { return string(NewTemplateID()) }, 'i': func() string { return string(NewImageID()) }, 'b': func() string { return string(NewBoxID()) },
		'r': func() string { return string(NewRunID()) }, 'n': func() string { return string(NewNodeID()) }, 'g': func() string { return string(NewGatewayID()) },
		's': func() string { return string(NewSnapshotID()) }, 'p': func() string { return string(NewOperationID()) }, 'c': func() string { return string(NewChoreID()) },
		'e': func() string { return string(NewEventID()) },
	}
	seen := map[string]bool{}
	for kind, make := range kinds {
		for range 1000 {
			id := make()
			require.Len(t, id, IDLength)
			require.Equal(t, kind, IDKind(id), id)
			require.False(t, seen[id], "twice: %s", id)
			seen[id] = true
			require.Error(t, ValidateName("box", id), "a name must not look like an id")
		}
	}
}

func TestIDsUseTheWholeAlphabetEvenly(t *testing.T) {
	counts := map[rune]int{}
	const n = 20_000
	for range n {
		for _, c := range newID('b')[1:] {
			counts[c]++
		}
	}
	require.Len(t, counts, len(idAlphabet))
	want := float64(n*(IDLength-1)) / float64(len(idAlphabet))
	for c, got := range counts {
		require.InEpsilon(t, want, float64(got), 0.1, "%c", c)
	}
}

func TestIDKindRefuses(t *testing.T) {
	for _, s := range []string{"", "b", "b123", strings.Repeat("1", 20), strings.Repeat("b", 21), "B" + strings.Repeat("a", 19), "b" + strings.Repeat("-", 19), strings.Repeat("b", 19) + "\n"} {
		require.Zero(t, IDKind(s), "%q", s)
	}
}

func TestValidateName(t *testing.T) {
	for _, name := range []string{"a", "box", "my-box-2", "a1", strings.Repeat("a", 40), "a-----b"} {
		require.NoError(t, ValidateName("box", name), name)
	}
	for _, name := range []string{"", "-a", "a-", "1a", "A", "a_b", "a.b", "ä", "a b", "a\n", strings.Repeat("a", 41), strings.Repeat("a", 20)} {
		err := ValidateName("box", name)
		require.Equal(t, CodeInvalid, CodeOf(err), "%q", name)
		require.Equal(t, "bad_name", ReasonOf(err), "%q", name)
	}
}

func FuzzValidateName(f *testing.F) {
	for _, s := range []string{"", "a", "my-box", "a-", "\x00", strings.Repeat("a", 20), "b\n", "ﬁ"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if ValidateName("box", s) != nil {
			return
		}
		// What is accepted can be a DNS label, a file name and an argument, and is never taken for an id.
		require.NotEmpty(t, s)
		require.LessOrEqual(t, len(s), 40)
		require.Zero(t, IDKind(s))
		require.Equal(t, strings.ToLower(s), s)
		require.Equal(t, -1, strings.IndexFunc(s, func(r rune) bool { return r != '-' && (r < 'a' || r > 'z') && (r < '0' || r > '9') }), s)
		require.False(t, strings.HasPrefix(s, "-") || strings.HasSuffix(s, "-"), s)
	})
}

func TestResources(t *testing.T) {
	require.NoError(t, DefaultResources.Validate())
	require.NoError(t, MinResources.Validate())
	require.NoError(t, MaxResources.Validate())
	require.Error(t, Resources{}.Validate())
	require.Equal(t, DefaultResources, Resources{}.Or(DefaultResources))
	mine := Resources{MemoryBytes: GiB}.Or(DefaultResources)
	require.Equal(t, GiB, mine.MemoryBytes)
	require.Equal(t, DefaultResources.CPUMillis, mine.CPUMillis)
	for _, field := range resourceFields {
		for _, change := range []func(int64, int64) int64{func(low, _ int64) int64 { return low - 1 }, func(_, high int64) int64 { return high + 1 }, func(int64, int64) int64 { return -1 }} {
			r, low, high := DefaultResources, MinResources, MaxResources
			*field.get(&r) = change(*field.get(&low), *field.get(&high))
			err := r.Validate()
			require.Equal(t, "resource_out_of_range", ReasonOf(err), field.name)
			require.Contains(t, err.Error(), field.name)
		}
	}
	require.ErrorContains(t, ValidateName("image", "A"), "no name for an image")
	require.ErrorContains(t, ValidateName("user", "A"), "no name for a user")
	small := DefaultResources
	small.MemoryBytes = 1
	require.ErrorContains(t, small.Validate(), "memory_bytes is 1; it must be from 134217728 (128 MiB) to 1099511627776 (1 TiB)")
	crowded := DefaultResources
	crowded.TmpBytes = crowded.MemoryBytes
	require.Error(t, crowded.Validate(), "tmp and shm are a part of memory")
	require.Equal(t, crowded.HomeBytes+crowded.RootBytes+crowded.MemoryBytes, crowded.DiskBytes())
}

func TestValidateLabels(t *testing.T) {
	require.NoError(t, ValidateLabels(nil))
	require.NoError(t, ValidateLabels(map[string]string{"team": "a b", "x/y.z_1": ""}))
	for _, labels := range []map[string]string{{"": "v"}, {"-a": "v"}, {"a b": "v"}, {strings.Repeat("k", 64): "v"}, {"k": strings.Repeat("v", 256)}, {"k": "a\x00b"}} {
		require.Equal(t, "bad_label", ReasonOf(ValidateLabels(labels)), labels)
	}
	many := map[string]string{}
	for n := range MaxLabels + 1 {
		many[fmt.Sprintf("k%d", n)] = ""
	}
	require.Equal(t, "too_many_labels", ReasonOf(ValidateLabels(many)))
}

func TestValidateEnv(t *testing.T) {
	require.NoError(t, ValidateEnv(map[string]string{"PATH": "/bin", "_x9": "a=b\nc"}))
	for _, env := range []map[string]string{{"": ""}, {"9A": ""}, {"A=B": ""}, {"A-B": ""}, {"A": "x\x00y"}} {
		require.Equal(t, "bad_variable", ReasonOf(ValidateEnv(env)), env)
	}
	require.Equal(t, "environment_too_large", ReasonOf(ValidateEnv(map[string]string{"A": strings.Repeat("x", MaxEnvBytes)})))
	many := map[string]string{}
	for n := range MaxEnv + 1 {
		many[fmt.Sprintf("K%d", n)] = ""
	}
	require.Equal(t, "too_many_variables", ReasonOf(ValidateEnv(many)))
}

func TestErrors(t *testing.T) {
	cause := errors.New("disk on fire")
	err := fmt.Errorf("creating a box: %w", &Error{Code: CodeExists, Reason: "box_name_taken", Message: "the name is taken", Cause: cause})
	require.Equal(t, CodeExists, CodeOf(err))
	require.Equal(t, "box_name_taken", ReasonOf(err))
	require.ErrorIs(t, err, cause)
	require.Equal(t, CodeInternal, CodeOf(cause), "what is not ours is internal")
	require.Empty(t, ReasonOf(cause))
	require.Zero(t, CodeOf(nil))
	require.Equal(t, CodeNotFound, CodeOf(NotFound("box", "x")))
	require.Equal(t, "box_not_found", ReasonOf(NotFound("box", "x")))
}
