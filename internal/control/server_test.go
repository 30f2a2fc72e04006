package control

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

// bare is a server without a store, for what needs none.
func bare(t *testing.T) (*Server, *strings.Builder) {
	t.Helper()
	logs := &strings.Builder{}
	s := &Server{log: slog.New(slog.NewTextHandler(logs, nil)), now: time.Now}
	s.draining, s.drain = context.WithCancel(t.Context())
	s.limiter, s.hub = newLimiter(time.Now), newHub(s)
	var err error
	s.metrics, err = newMetrics(s, prometheus.NewRegistry())
	require.NoError(t, err)
	return s, logs
}

func inRequest(t *testing.T, id string) context.Context {
	t.Helper()
	return context.WithValue(t.Context(), connectionKey, &connection{requestID: id})
}

func TestErrorsCrossInOneShape(t *testing.T) {
	s, logs := bare(t)
	e := carrel.Errorf(carrel.CodeExhausted, "no_room", "there is no room")
	e.Metadata = map[string]string{"k": "v"}
	e.RetryAfter = 1500 * time.Millisecond
	e.Cause = errors.New("the secret cause")
	err := s.wireError(inRequest(t, "r1"), "/m", errors.Join(errors.New("around it"), e))
	var ce *connect.Error
	require.ErrorAs(t, err, &ce)
	require.Equal(t, connect.CodeResourceExhausted, ce.Code())
	require.Equal(t, "there is no room", ce.Message())
	require.Equal(t, "2", ce.Meta().Get("Retry-After"))
	require.Len(t, ce.Details(), 2)
	value, err := ce.Details()[0].Value()
	require.NoError(t, err)
	info, ok := value.(*errdetails.ErrorInfo)
	require.True(t, ok)
	require.Equal(t, "no_room", info.GetReason())
	require.Equal(t, map[string]string{"k": "v"}, info.GetMetadata())
	require.Contains(t, logs.String(), "the secret cause", "logged whole")
}

func TestWhatIsNoErrorForPeopleIsNotShown(t *testing.T) {
	s, logs := bare(t)
	for _, bad := range []error{
		errors.New("column secret does not exist"),
		&carrel.Error{Code: carrel.CodeInternal, Reason: "x", Message: "secret"},
	} {
		err := s.wireError(inRequest(t, "r2"), "/m", bad)
		require.Equal(t, connect.CodeInternal, connect.CodeOf(err))
		require.Contains(t, err.Error(), "internal error (request r2)")
		require.NotContains(t, err.Error(), "secret")
	}
	require.Contains(t, logs.String(), "column secret does not exist")
	require.Contains(t, logs.String(), "request=r2")
	require.NoError(t, s.wireError(t.Context(), "/m", nil))
	own := connect.NewError(connect.CodeInvalidArgument, errors.New("bad JSON"))
	require.Same(t, error(own), s.wireError(t.Context(), "/m", own))
}

func TestAnEndedRequestIsSaidToHaveEnded(t *testing.T) {
	s, _ := bare(t)
	ctx, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	err := s.wireError(ctx, "/m", errors.New("query: canceling statement"))
	require.Equal(t, connect.CodeDeadlineExceeded, connect.CodeOf(err))
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	require.Equal(t, connect.CodeCanceled, connect.CodeOf(s.wireError(ctx, "/m", errors.New("x"))))
}

func TestAPanicIsAnInternalErrorWithANumber(t *testing.T) {
	s, logs := bare(t)
	h := s.withConnection(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("oh no") }))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	require.Equal(t, 500, w.Code)
	require.Contains(t, w.Body.String(), w.Header().Get("X-Request-Id"))
	require.NotContains(t, w.Body.String(), "oh no")
	require.Contains(t, logs.String(), "oh no")

	unary := guard{s}.WrapUnary(func(context.Context, connect.AnyRequest) (connect.AnyResponse, error) { panic("oh dear") })
	_, err := unary(inRequest(t, "r3"), connect.NewRequest(&carrelv1.WhoAmIRequest{}))
	require.Error(t, err, "a method without a policy row does not even get there")
	require.NotContains(t, logs.String(), "oh dear")
}

func TestAHandlerThatDoesNotAskThePolicyIsWithheld(t *testing.T) {
	rule, ok := auth.RuleOf("/carrel.v1.BoxService/GetBox")
	require.True(t, ok)
	a := &access{method: "/carrel.v1.BoxService/GetBox", rule: rule, principal: auth.Principal{User: "u1"}}
	require.Error(t, a.finish())
	require.Error(t, allow(context.WithValue(t.Context(), accessKey, a), "o1"))
	require.NoError(t, a.finish(), "it asked; what it does with the answer is its business")
	require.NoError(t, (&access{rule: auth.Rule{Need: auth.NeedUser}}).finish())
}

func TestTheLimitIsGenerousAndFillsAgain(t *testing.T) {
	now := time.Unix(0, 0)
	l := newLimiter(func() time.Time { return now })
	for range requestBurst {
		require.NoError(t, l.take("user:a"))
	}
	err := l.take("user:a")
	require.Equal(t, carrel.CodeExhausted, carrel.CodeOf(err))
	require.NoError(t, l.take("user:b"), "one's loop does not hurt another")
	now = now.Add(time.Second)
	for range requestsPerSecond {
		require.NoError(t, l.take("user:a"))
	}
	require.Error(t, l.take("user:a"))
	now = now.Add(time.Hour)
	for i := range maxBuckets + 10 {
		require.NoError(t, l.take("user:"+string(rune('A'+i%26))+time.Duration(i).String()))
	}
	require.LessOrEqual(t, len(l.buckets), maxBuckets+10)
	require.NotContains(t, l.buckets, "user:a", "those that are full again are forgotten")
}

func TestMadeUpNamesAreNames(t *testing.T) {
	for range 1000 {
		require.NoError(t, carrel.ValidateName("box", inventName()))
	}
	for _, list := range [][]string{adjectives, nouns} {
		seen := map[string]bool{}
		for _, word := range list {
			require.Regexp(t, regexp.MustCompile(`^[a-z]{2,8}$`), word)
			require.False(t, seen[word], word)
			seen[word] = true
		}
	}
}

func TestResourcesAreCompletedSoThatTheyFit(t *testing.T) {
	template := carrel.Resources{MemoryBytes: 4 * carrel.GiB, TmpBytes: carrel.GiB}
	r := complete(carrel.Resources{MemoryBytes: 256 * carrel.MiB}, template)
	require.NoError(t, r.Validate())
	require.Equal(t, 256*carrel.MiB, r.MemoryBytes)
	require.Equal(t, 128*carrel.MiB, r.TmpBytes, "half of the memory, where nobody asked")
	r = complete(carrel.Resources{MemoryBytes: 256 * carrel.MiB, TmpBytes: carrel.GiB}, template)
	require.Error(t, r.Validate(), "what was asked for is not changed in silence")
	for range 1000 {
		asked := carrel.Resources{MemoryBytes: carrel.MinResources.MemoryBytes + rand.Int64N(carrel.GiB)}
		require.NoError(t, complete(asked, carrel.Resources{}).Validate())
	}
}

func TestFilters(t *testing.T) {
	var list store.ListBoxes
	require.NoError(t, parseFilter(`state=running AND template=python AND owner=u1111111111111111111 AND name=dev AND label.a="b c" AND label.d=`, &list))
	require.Equal(t, store.ListBoxes{
		State: []carrel.State{carrel.StateRunning}, Template: "python", Owner: "u1111111111111111111", Name: "dev",
		Labels: map[string]string{"a": "b c", "d": ""},
	}, list)
	require.NoError(t, parseFilter("  ", &store.ListBoxes{}))
	for _, bad := range []string{
		"state", "state=", "state=X", "x=y", "a=b OR c=d", "name=a AND", "name=a AND name=b", "state=RUNNING AND state=PAUSED",
		`name="a`, "owner=me", "label.=x", "label.a=1 AND label.a=2", "name=a name=b", strings.Repeat("x", maxFilter+1),
	} {
		require.Equal(t, carrel.CodeInvalid, carrel.CodeOf(parseFilter(bad, &store.ListBoxes{})), bad)
	}
}

func FuzzFilter(f *testing.F) {
	f.Add(`state=RUNNING AND label.a="b c"`)
	f.Add(`name=" AND `)
	f.Fuzz(func(t *testing.T, text string) {
		if err := parseFilter(text, &store.ListBoxes{}); err != nil {
			require.Equal(t, carrel.CodeInvalid, carrel.CodeOf(err))
		}
	})
}

func TestStatesHaveOneNameEverywhere(t *testing.T) {
	for number, name := range carrelv1.State_name {
		if number == 0 {
			continue
		}
		state := stateFromProto(carrelv1.State(number))
		require.Equal(t, "STATE_"+string(state), name)
		require.Equal(t, carrelv1.State(number), stateProto(state))
	}
}
