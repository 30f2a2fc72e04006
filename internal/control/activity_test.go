package control_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

func (u *user) activity(id string) *carrelv1.BoxActivity {
	u.r.t.Helper()
	a, err := u.boxes.GetBoxActivity(within(u.r.t), req(&carrelv1.GetBoxActivityRequest{Id: id}))
	require.NoError(u.r.t, err)
	return a.Msg
}

func TestActivityOfABox(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	m := r.newMachine("n1")
	u := r.newUser("maya", "default", auth.RoleMember)
	id := u.create("mine")
	require.Empty(t, u.activity(id).GetLastStopReason(), "it never stopped")
	m.run(id)

	box := m.box(id)
	seen := time.Now()
	m.report(&linkv1.ReportRequest{Activities: []*linkv1.RunActivity{
		{RunId: string(box.Run.ID), Epoch: box.Epoch, Signals: []*linkv1.ActivitySignal{
			{Kind: "command", Time: timestamppb.New(seen), Active: true, Detail: "make -j2"},
			{Kind: "session", Time: timestamppb.New(seen), Active: true, Detail: "3 sessions"},
		}},
		{RunId: "nonsense", Epoch: 1},
	}})
	a := u.activity(id)
	require.Equal(t, carrelv1.State_STATE_RUNNING, a.GetState())
	require.Len(t, a.GetSignals(), 2)
	for _, s := range a.GetSignals() {
		require.True(t, s.GetActive())
		require.Equal(t, s.GetKind() == "command", s.GetCounts(), "a session alone does not count")
	}
	require.Empty(t, a.GetDeadlines(), "none while the command runs")
	m.report(&linkv1.ReportRequest{Activities: []*linkv1.RunActivity{{RunId: string(box.Run.ID), Epoch: box.Epoch, Signals: []*linkv1.ActivitySignal{
		{Kind: "command", Time: timestamppb.New(seen)},
	}}}})
	a = u.activity(id)
	require.Len(t, a.GetDeadlines(), 1)
	require.Equal(t, "idle", a.GetDeadlines()[0].GetRule())
	require.Equal(t, "default", a.GetDeadlines()[0].GetSetBy())
	require.WithinDuration(t, seen.Add(30*time.Minute), a.GetDeadlines()[0].GetTime().AsTime(), time.Second)

	// What the box says itself, and who set what.
	mask := func(paths ...string) *fieldmaskpb.FieldMask { return &fieldmaskpb.FieldMask{Paths: paths} }
	update := func(p *carrelv1.IdlePolicy, paths ...string) (*carrelv1.IdlePolicy, error) {
		changed, err := u.boxes.UpdateBox(within(t), req(&carrelv1.UpdateBoxRequest{Id: id, Box: &carrelv1.Box{Idle: p}, UpdateMask: mask(paths...)}))
		if err != nil {
			return nil, err
		}
		return changed.Msg.GetIdle(), nil
	}
	now, err := update(&carrelv1.IdlePolicy{After: durationpb.New(time.Hour), MaxRun: durationpb.New(2 * time.Hour)}, "idle")
	require.NoError(t, err)
	require.Equal(t, time.Hour, now.GetAfter().AsDuration())
	require.Equal(t, "pause", now.GetAction(), "what it does not say is as before")
	next := u.activity(id).GetDeadlines()
	require.Len(t, next, 2)
	require.Equal(t, "box", next[0].GetSetBy())
	now, err = update(&carrelv1.IdlePolicy{}, "idle.after", "idle.max_run")
	require.NoError(t, err)
	require.Equal(t, 30*time.Minute, now.GetAfter().AsDuration(), "the template's, and so the default's, again")
	require.Negative(t, now.GetMaxRun().AsDuration())
	_, err = update(&carrelv1.IdlePolicy{After: durationpb.New(time.Millisecond)}, "idle.after")
	require.Equal(t, "bad_idle_policy", reason(err))
	_, err = update(&carrelv1.IdlePolicy{}, "idle.mood")
	require.Equal(t, "bad_update_mask", reason(err))

	// Why it was last stopped, and by whom.
	_, err = u.boxes.PauseBox(within(t), req(&carrelv1.PauseBoxRequest{Id: id}))
	require.NoError(t, err)
	m.pause(id)
	a = u.activity(id)
	require.Equal(t, "paused because pause was asked for", a.GetLastStopReason())
	require.Equal(t, "user:"+u.id(), a.GetLastStopActor())
	require.Empty(t, a.GetDeadlines())
}

func TestKeepAwake(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	m := r.newMachine("n1")
	u := r.newUser("maya", "default", auth.RoleMember)
	id := u.create("mine")
	m.run(id)
	keep := func(d time.Duration) (*carrelv1.BoxActivity, error) {
		a, err := u.boxes.KeepBoxAwake(within(t), req(&carrelv1.KeepBoxAwakeRequest{Id: id, Duration: durationpb.New(d)}))
		if err != nil {
			return nil, err
		}
		return a.Msg, nil
	}
	a, err := keep(time.Hour)
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(time.Hour), a.GetAwakeUntil().AsTime(), time.Minute)
	require.Len(t, a.GetSignals(), 1)
	require.Equal(t, "keep_awake", a.GetSignals()[0].GetKind())
	require.True(t, a.GetSignals()[0].GetActive() && a.GetSignals()[0].GetCounts())
	require.Equal(t, a.GetAwakeUntil().AsTime().Add(30*time.Minute), a.GetDeadlines()[0].GetTime().AsTime())
	a, err = keep(0)
	require.NoError(t, err)
	require.Nil(t, a.GetAwakeUntil())
	for _, d := range []time.Duration{-time.Second, carrel.MaxKeepAwake + time.Second} {
		_, err = keep(d)
		require.Equal(t, "bad_duration", reason(err))
	}

	viewer := r.newUser("vera", "default", auth.RoleViewer)
	require.Equal(t, carrelv1.State_STATE_RUNNING, viewer.activity(id).GetState(), "who may see the box may see that")
	_, err = viewer.boxes.KeepBoxAwake(within(t), req(&carrelv1.KeepBoxAwakeRequest{Id: id, Duration: durationpb.New(time.Hour)}))
	require.Equal(t, carrel.CodeDenied, code(err))
	_, err = r.asAdmin().orgs.CreateOrg(t.Context(), req(&carrelv1.CreateOrgRequest{Name: "other"}))
	require.NoError(t, err)
	stranger := r.newUser("sam", "other", auth.RoleOwner)
	_, err = stranger.boxes.GetBoxActivity(within(t), req(&carrelv1.GetBoxActivityRequest{Id: id}))
	require.Equal(t, carrel.CodeNotFound, code(err), "a foreign box is an unknown one")
	_, err = stranger.boxes.KeepBoxAwake(within(t), req(&carrelv1.KeepBoxAwakeRequest{Id: id}))
	require.Equal(t, carrel.CodeNotFound, code(err))
	_, err = u.boxes.PauseBox(within(t), req(&carrelv1.PauseBoxRequest{Id: id}))
	require.NoError(t, err)
	m.pause(id)
	_, err = keep(time.Hour)
	require.Equal(t, "wrong_state", reason(err))
	require.Contains(t, message(t, err), "carrel start mine")
}
