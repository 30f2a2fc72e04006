package control_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

func TestTheLifeOfABox(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u, m := r.asAdmin(), r.newMachine("one")
	ctx := t.Context()

	op, err := u.boxes.CreateBox(ctx, req(&carrelv1.CreateBoxRequest{Name: "dev", Labels: map[string]string{"team": "a"}, Env: map[string]string{"X": "1"}}))
	require.NoError(t, err)
	require.False(t, op.Msg.GetDone())
	id := op.Msg.GetTargetId()
	box := u.get("dev")
	require.Equal(t, id, box.GetId())
	require.Equal(t, carrelv1.State_STATE_PROVISIONING, box.GetState())
	require.Equal(t, "base", box.GetTemplate())
	require.EqualValues(t, 1, box.GetTemplateVersion())
	require.Equal(t, testDigest, box.GetImageDigest())
	require.Equal(t, map[string]string{"FROM": "template", "X": "1"}, box.GetEnv())
	require.Equal(t, 256*carrel.MiB, box.GetResources().GetMemoryBytes())

	m.run(id)
	box = u.get(id)
	require.Equal(t, carrelv1.State_STATE_RUNNING, box.GetState())
	require.Equal(t, string(m.id), box.GetNodeId())
	require.NotEmpty(t, box.GetRunId())
	require.Equal(t, id, u.get(box.GetRunId()).GetId(), "the id of a run finds its box")
	done, err := u.ops.GetOperation(ctx, req(&carrelv1.GetOperationRequest{Id: op.Msg.GetId()}))
	require.NoError(t, err)
	require.True(t, done.Msg.GetDone())
	require.Nil(t, done.Msg.GetError())
	require.NotNil(t, done.Msg.GetDuration())
	run, err := u.boxes.GetRun(ctx, req(&carrelv1.GetRunRequest{Id: box.GetRunId()}))
	require.NoError(t, err)
	require.Equal(t, "running", run.Msg.GetPhase())
	require.Equal(t, id, run.Msg.GetBoxId())

	_, err = u.boxes.PauseBox(ctx, req(&carrelv1.PauseBoxRequest{Id: "dev"}))
	require.NoError(t, err)
	require.Equal(t, "PAUSING", u.state(id))
	m.pause(id)
	require.Equal(t, "PAUSED", u.state(id))
	require.NotNil(t, u.get(id).GetDurableTime())

	_, err = u.boxes.StartBox(ctx, req(&carrelv1.StartBoxRequest{Id: "dev"}))
	require.NoError(t, err)
	require.Equal(t, "RESUMING", u.state(id), "start of a paused box resumes")
	require.True(t, m.assign(id).Run.WithMemory)
	m.says(id, carrel.PhaseRunning)

	_, err = u.boxes.StopBox(ctx, req(&carrelv1.StopBoxRequest{Id: "dev"}))
	require.NoError(t, err)
	require.Equal(t, "STOPPING", u.state(id))
	m.halt(id)
	require.Equal(t, "STOPPED", u.state(id))

	_, err = u.boxes.DeleteBox(ctx, req(&carrelv1.DeleteBoxRequest{Id: "dev"}))
	require.NoError(t, err)
	require.Equal(t, "DELETING", u.state(id))
	_, err = u.boxes.StartBox(ctx, req(&carrelv1.StartBoxRequest{Id: id}))
	require.Equal(t, carrel.CodePrecondition, code(err))

	events, err := u.boxes.ListBoxEvents(ctx, req(&carrelv1.ListBoxEventsRequest{Id: id}))
	require.NoError(t, err)
	require.NotEmpty(t, events.Msg.GetEvents())
	ops, err := u.ops.ListOperations(ctx, req(&carrelv1.ListOperationsRequest{Target: id}))
	require.NoError(t, err)
	require.Len(t, ops.Msg.GetOperations(), 5)
	require.Equal(t, "delete", ops.Msg.GetOperations()[0].GetVerb(), "newest first")
}

func TestWrongStatesAreRefusedInWords(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u, m := r.asAdmin(), r.newMachine("one")
	ctx := t.Context()
	pause := func(id string) error {
		_, err := u.boxes.PauseBox(ctx, req(&carrelv1.PauseBoxRequest{Id: id}))
		return err
	}
	resume := func(id string) error {
		_, err := u.boxes.ResumeBox(ctx, req(&carrelv1.ResumeBoxRequest{Id: id}))
		return err
	}
	id := u.create("dev")
	m.run(id)
	_, err := u.boxes.StartBox(ctx, req(&carrelv1.StartBoxRequest{Id: "dev", Cold: true}))
	require.Equal(t, carrel.CodePrecondition, code(err))
	require.Contains(t, message(t, err), "carrel restart dev")

	_, err = u.boxes.StopBox(ctx, req(&carrelv1.StopBoxRequest{Id: "dev"}))
	require.NoError(t, err)
	require.Equal(t, "box dev is stopping, not paused; start it with: carrel start dev", message(t, resume("dev")))
	m.halt(id)
	err = resume("dev")
	require.Equal(t, carrel.CodePrecondition, code(err))
	require.Equal(t, "wrong_state", reason(err))
	require.Equal(t, "box dev is stopped, not paused; start it with: carrel start dev", message(t, err))
	err = pause("dev")
	require.Equal(t, carrel.CodePrecondition, code(err))
	require.Contains(t, message(t, err), "start it with: carrel start dev")

	_, err = u.boxes.StartBox(ctx, req(&carrelv1.StartBoxRequest{Id: "dev"}))
	require.NoError(t, err)
	err = pause("dev")
	require.Equal(t, carrel.CodeUnavailable, code(err), "between two starts there is nothing to keep")
	m.run(id)
	require.NoError(t, pause("dev"))
	m.pause(id)
	require.NoError(t, pause("dev"), "paused already")
	require.Equal(t, "PAUSED", u.state(id))
	require.NoError(t, resume("dev"))
	require.NoError(t, resume("dev"), "on its way already")
	m.run(id)
	require.NoError(t, resume("dev"), "running already")
	require.Equal(t, "RUNNING", u.state(id))
	_, err = u.boxes.RestartBox(ctx, req(&carrelv1.RestartBoxRequest{Id: "dev"}))
	require.NoError(t, err)
	require.Equal(t, "STOPPING", u.state(id))
	require.Equal(t, carrel.CodePrecondition, code(pause("dev")), "a restart goes through a stop")
}

func TestAColdStartGivesUpTheMemory(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u, m := r.asAdmin(), r.newMachine("one")
	id := u.create("dev")
	m.run(id)
	_, err := u.boxes.PauseBox(t.Context(), req(&carrelv1.PauseBoxRequest{Id: id}))
	require.NoError(t, err)
	m.pause(id)
	_, err = u.boxes.StartBox(t.Context(), req(&carrelv1.StartBoxRequest{Id: id, Cold: true}))
	require.NoError(t, err)
	require.False(t, m.assign(id).Run.WithMemory)
}

func TestARepeatedRequestGivesTheFirstAnswer(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u, m := r.asAdmin(), r.newMachine("one")
	ctx := t.Context()
	create := &carrelv1.CreateBoxRequest{RequestId: "create-1"}
	first, err := u.boxes.CreateBox(ctx, req(create))
	require.NoError(t, err)
	again, err := u.boxes.CreateBox(ctx, req(create))
	require.NoError(t, err)
	require.Equal(t, first.Msg.GetId(), again.Msg.GetId())
	require.Equal(t, first.Msg.GetTargetId(), again.Msg.GetTargetId())
	require.Regexp(t, `^[a-z]+-[a-z]+-\d{3}$`, first.Msg.GetTargetName(), "a made-up name")
	_, err = u.boxes.CreateBox(ctx, req(&carrelv1.CreateBoxRequest{RequestId: "create-1", Name: "other"}))
	require.Equal(t, "request_id_reused", reason(err))
	boxes, err := u.boxes.ListBoxes(ctx, req(&carrelv1.ListBoxesRequest{}))
	require.NoError(t, err)
	require.Len(t, boxes.Msg.GetBoxes(), 1)

	id := first.Msg.GetTargetId()
	m.run(id)
	pause := &carrelv1.PauseBoxRequest{Id: id, RequestId: "pause-1"}
	one, err := u.boxes.PauseBox(ctx, req(pause))
	require.NoError(t, err)
	m.pause(id)
	_, err = u.boxes.StopBox(ctx, req(&carrelv1.StopBoxRequest{Id: id}))
	require.NoError(t, err)
	two, err := u.boxes.PauseBox(ctx, req(pause))
	require.NoError(t, err, "the state is another one meanwhile; the answer is not")
	require.Equal(t, one.Msg.GetId(), two.Msg.GetId())
	require.Equal(t, carrel.IntentStopped, m.box(id).Intent, "and nothing is done again")

	// The newest version of the template is one by now that no machine can hold.
	_, err = u.templates.PushTemplate(ctx, req(&carrelv1.PushTemplateRequest{Org: "system", Yaml: "name: base\nimage: base\nresources: {memory: 900GiB}\n"}))
	require.NoError(t, err)
	again, err = u.boxes.CreateBox(ctx, req(create))
	require.NoError(t, err)
	require.Equal(t, first.Msg.GetId(), again.Msg.GetId())
	_, err = u.boxes.CreateBox(ctx, req(&carrelv1.CreateBoxRequest{RequestId: "create-2"}))
	require.Equal(t, "too_large", reason(err))
}

func TestBadRequestsMakeNothing(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u := r.asAdmin()
	ctx := t.Context()
	for name, c := range map[string]struct {
		m      *carrelv1.CreateBoxRequest
		code   carrel.Code
		reason string
	}{
		"name":              {&carrelv1.CreateBoxRequest{Name: "Dev!"}, carrel.CodeInvalid, "bad_name"},
		"name like an id":   {&carrelv1.CreateBoxRequest{Name: "b1111111111111111111"}, carrel.CodeInvalid, "bad_name"},
		"template":          {&carrelv1.CreateBoxRequest{Template: "nothing"}, carrel.CodeNotFound, "template_not_found"},
		"template version":  {&carrelv1.CreateBoxRequest{Template: "base@7"}, carrel.CodeNotFound, "template_not_found"},
		"no version":        {&carrelv1.CreateBoxRequest{Template: "base@x"}, carrel.CodeInvalid, "bad_version"},
		"too large":         {&carrelv1.CreateBoxRequest{Resources: &carrelv1.Resources{MemoryBytes: 1 << 50}}, carrel.CodeInvalid, "resource_out_of_range"},
		"negative":          {&carrelv1.CreateBoxRequest{Resources: &carrelv1.Resources{CpuMillis: -1}}, carrel.CodeInvalid, "resource_out_of_range"},
		"tmp above memory":  {&carrelv1.CreateBoxRequest{Resources: &carrelv1.Resources{TmpBytes: carrel.GiB}}, carrel.CodeInvalid, "resource_out_of_range"},
		"label":             {&carrelv1.CreateBoxRequest{Labels: map[string]string{"": "x"}}, carrel.CodeInvalid, "bad_label"},
		"env":               {&carrelv1.CreateBoxRequest{Env: map[string]string{"A=B": "x"}}, carrel.CodeInvalid, "bad_variable"},
		"organisation":      {&carrelv1.CreateBoxRequest{Org: "nowhere"}, carrel.CodeNotFound, "organisation_not_found"},
		"organisation's id": {&carrelv1.CreateBoxRequest{Org: "o1111111111111111111"}, carrel.CodeNotFound, "organisation_not_found"},
		"request id":        {&carrelv1.CreateBoxRequest{RequestId: strings.Repeat("x", 200)}, carrel.CodeInvalid, "bad_request_id"},
	} {
		_, err := u.boxes.CreateBox(ctx, req(c.m))
		require.Equal(t, c.code, code(err), "%s: %v", name, err)
		require.Equal(t, c.reason, reason(err), name)
	}
	u.create("dev")
	_, err := u.boxes.CreateBox(ctx, req(&carrelv1.CreateBoxRequest{Name: "dev"}))
	require.Equal(t, carrel.CodeExists, code(err))
	boxes, err := u.boxes.ListBoxes(ctx, req(&carrelv1.ListBoxesRequest{}))
	require.NoError(t, err)
	require.Len(t, boxes.Msg.GetBoxes(), 1)
	for name, list := range map[string]*carrelv1.ListBoxesRequest{
		"filter": {Filter: "size=3"}, "state": {Filter: "state=SLEEPING"}, "order": {OrderBy: "size"}, "page": {PageSize: -1}, "token": {PageToken: "x"},
	} {
		_, err := u.boxes.ListBoxes(ctx, req(list))
		require.Equal(t, carrel.CodeInvalid, code(err), name)
	}
}

func TestListsAreFilteredOrderedAndPaged(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u, m := r.asAdmin(), r.newMachine("one")
	ctx := t.Context()
	for _, name := range []string{"a", "b", "c"} {
		_, err := u.boxes.CreateBox(ctx, req(&carrelv1.CreateBoxRequest{Name: name, Labels: map[string]string{"odd": map[bool]string{true: "yes", false: "no"}[name != "b"]}}))
		require.NoError(t, err)
	}
	m.run(u.get("b").GetId())
	names := func(m *carrelv1.ListBoxesRequest) []string {
		resp, err := u.boxes.ListBoxes(ctx, req(m))
		require.NoError(t, err)
		var out []string
		for _, b := range resp.Msg.GetBoxes() {
			out = append(out, b.GetName())
		}
		return out
	}
	require.Equal(t, []string{"b"}, names(&carrelv1.ListBoxesRequest{Filter: "state=RUNNING"}))
	require.Equal(t, []string{"a", "c"}, names(&carrelv1.ListBoxesRequest{Filter: `label.odd="yes" AND template=base`, OrderBy: "name"}))
	require.Equal(t, []string{"c", "b", "a"}, names(&carrelv1.ListBoxesRequest{}), "newest first")
	var all []string
	token := ""
	for range 3 {
		resp, err := u.boxes.ListBoxes(ctx, req(&carrelv1.ListBoxesRequest{PageSize: 1, PageToken: token, OrderBy: "name"}))
		require.NoError(t, err)
		require.Len(t, resp.Msg.GetBoxes(), 1)
		all, token = append(all, resp.Msg.GetBoxes()[0].GetName()), resp.Msg.GetNextPageToken()
	}
	require.Equal(t, []string{"a", "b", "c"}, all)
	require.Empty(t, token)
}

func TestUpdateChangesWhatTheMaskNames(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u, m := r.asAdmin(), r.newMachine("one")
	ctx := t.Context()
	id := u.create("dev")
	before := u.get(id)
	update := func(b *carrelv1.Box, etag string, paths ...string) (*carrelv1.Box, error) {
		resp, err := u.boxes.UpdateBox(ctx, req(&carrelv1.UpdateBoxRequest{Id: id, Box: b, Etag: etag, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}}))
		if err != nil {
			return nil, err
		}
		return resp.Msg, nil
	}
	box, err := update(&carrelv1.Box{Name: "new", Labels: map[string]string{"a": "b"}}, before.GetEtag(), "name")
	require.NoError(t, err)
	require.Equal(t, "new", box.GetName())
	require.Empty(t, box.GetLabels(), "the mask does not name them")
	_, err = update(&carrelv1.Box{Name: "newer"}, before.GetEtag(), "name")
	require.Equal(t, carrel.CodeAborted, code(err), "it has changed since")
	box, err = update(&carrelv1.Box{Labels: map[string]string{"a": "b"}, Env: map[string]string{"K": "v"}}, "")
	require.NoError(t, err)
	require.Equal(t, map[string]string{"a": "b"}, box.GetLabels(), "without a mask what is there counts")
	require.Equal(t, "new", box.GetName())
	box, err = update(&carrelv1.Box{Resources: &carrelv1.Resources{MemoryBytes: carrel.GiB}}, "", "resources.memory_bytes")
	require.NoError(t, err)
	require.Equal(t, carrel.GiB, box.GetResources().GetMemoryBytes())
	require.Equal(t, before.GetResources().GetHomeBytes(), box.GetResources().GetHomeBytes())
	require.Empty(t, box.GetNotice())

	m.run(id)
	box, err = update(&carrelv1.Box{Resources: &carrelv1.Resources{MemoryBytes: 2 * carrel.GiB}}, "", "resources")
	require.NoError(t, err)
	require.Contains(t, box.GetNotice(), "carrel restart new")
	require.Equal(t, "RUNNING", u.state(id), "an update restarts nothing")
	_, err = update(&carrelv1.Box{Resources: &carrelv1.Resources{HomeBytes: 2 * carrel.GiB}}, "", "resources.home_bytes")
	require.Equal(t, "home_size_fixed", reason(err))
	for _, path := range []string{"owner_id", "resources.speed", "labels.x"} {
		_, err = update(&carrelv1.Box{}, "", path)
		require.Equal(t, "bad_update_mask", reason(err), path)
	}
	_, err = update(&carrelv1.Box{Resources: &carrelv1.Resources{MemoryBytes: 1}}, "", "resources")
	require.Equal(t, "resource_out_of_range", reason(err))
	_, err = update(nil, "")
	require.Equal(t, carrel.CodeInvalid, code(err))
}

func TestWaitAnswersWhenTheStateComes(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u, m := r.asAdmin(), r.newMachine("one")
	ctx := within(t)
	id := u.create("dev")
	wait := func(w *carrelv1.WaitBoxRequest) (*carrelv1.Box, error) {
		w.Id = "dev"
		resp, err := u.boxes.WaitBox(ctx, req(w))
		if err != nil {
			return nil, err
		}
		return resp.Msg, nil
	}
	running := []carrelv1.State{carrelv1.State_STATE_RUNNING}
	answer := make(chan error, 1)
	go func() {
		_, err := wait(&carrelv1.WaitBoxRequest{States: running})
		answer <- err
	}()
	m.run(id)
	require.NoError(t, <-answer)
	box, err := wait(&carrelv1.WaitBoxRequest{})
	require.NoError(t, err, "no states: what the intent leads to")
	require.Equal(t, carrelv1.State_STATE_RUNNING, box.GetState())

	_, err = wait(&carrelv1.WaitBoxRequest{States: running, Generation: box.GetGeneration() + 1, Timeout: durationpb.New(10 * time.Millisecond)})
	require.Equal(t, carrel.CodeDeadline, code(err), "the state answers an older generation")
	_, err = wait(&carrelv1.WaitBoxRequest{States: []carrelv1.State{carrelv1.State_STATE_STOPPED}, Timeout: durationpb.New(10 * time.Millisecond)})
	require.Equal(t, carrel.CodeDeadline, code(err))
	require.Equal(t, "wait_timeout", reason(err))
	require.Contains(t, message(t, err), "box dev is RUNNING and not STOPPED")
	_, err = wait(&carrelv1.WaitBoxRequest{Timeout: durationpb.New(time.Hour)})
	require.Equal(t, "bad_timeout", reason(err))
	_, err = wait(&carrelv1.WaitBoxRequest{States: []carrelv1.State{77}})
	require.Equal(t, "bad_state", reason(err))

	_, err = u.boxes.PauseBox(ctx, req(&carrelv1.PauseBoxRequest{Id: id}))
	require.NoError(t, err)
	go func() {
		_, err := wait(&carrelv1.WaitBoxRequest{})
		answer <- err
	}()
	report := m.runReport(id, carrel.PhaseRunning)
	report.FailedOrder, report.Reason, report.Message = "pause", carrel.ReasonDiskFull, "the pool is full"
	m.reportRuns(report)
	err = <-answer
	require.Equal(t, carrel.ReasonDiskFull, reason(err))
	require.Contains(t, message(t, err), "runs on: the pool is full")
	got := u.get(id)
	require.Equal(t, carrelv1.State_STATE_RUNNING, got.GetState())
	require.Equal(t, "the pool is full", got.GetFailure().GetMessage())
}

func TestWhatOneMayNotSeeIsNotFound(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	admin, m := r.asAdmin(), r.newMachine("one")
	ctx := t.Context()
	_, err := admin.orgs.CreateOrg(ctx, req(&carrelv1.CreateOrgRequest{Name: "other"}))
	require.NoError(t, err)
	stranger := r.newUser("stranger", "other", auth.RoleOwner)
	id := admin.create("dev")
	m.run(id)
	run := admin.get(id).GetRunId()
	ops, err := admin.ops.ListOperations(ctx, req(&carrelv1.ListOperationsRequest{}))
	require.NoError(t, err)
	op := ops.Msg.GetOperations()[0].GetId()

	for _, ref := range []string{id, "dev", run} {
		for name, call := range map[string]func() error{
			"get": func() error { _, err := stranger.boxes.GetBox(ctx, req(&carrelv1.GetBoxRequest{Id: ref})); return err },
			"start": func() error {
				_, err := stranger.boxes.StartBox(ctx, req(&carrelv1.StartBoxRequest{Id: ref}))
				return err
			},
			"stop": func() error {
				_, err := stranger.boxes.StopBox(ctx, req(&carrelv1.StopBoxRequest{Id: ref}))
				return err
			},
			"pause": func() error {
				_, err := stranger.boxes.PauseBox(ctx, req(&carrelv1.PauseBoxRequest{Id: ref}))
				return err
			},
			"resume": func() error {
				_, err := stranger.boxes.ResumeBox(ctx, req(&carrelv1.ResumeBoxRequest{Id: ref}))
				return err
			},
			"restart": func() error {
				_, err := stranger.boxes.RestartBox(ctx, req(&carrelv1.RestartBoxRequest{Id: ref}))
				return err
			},
			"delete": func() error {
				_, err := stranger.boxes.DeleteBox(ctx, req(&carrelv1.DeleteBoxRequest{Id: ref}))
				return err
			},
			"update": func() error {
				_, err := stranger.boxes.UpdateBox(ctx, req(&carrelv1.UpdateBoxRequest{Id: ref, Box: &carrelv1.Box{Name: "x"}}))
				return err
			},
			"wait": func() error {
				_, err := stranger.boxes.WaitBox(ctx, req(&carrelv1.WaitBoxRequest{Id: ref}))
				return err
			},
			"ticket": func() error {
				_, err := stranger.boxes.CreateTicket(ctx, req(&carrelv1.CreateTicketRequest{Id: ref}))
				return err
			},
			"events": func() error {
				_, err := stranger.boxes.ListBoxEvents(ctx, req(&carrelv1.ListBoxEventsRequest{Id: ref}))
				return err
			},
			"in its organisation": func() error {
				_, err := stranger.boxes.GetBox(ctx, req(&carrelv1.GetBoxRequest{Id: ref, Org: "default"}))
				return err
			},
			"in mine": func() error {
				_, err := stranger.boxes.GetBox(ctx, req(&carrelv1.GetBoxRequest{Id: ref, Org: "other"}))
				return err
			},
		} {
			require.Equal(t, carrel.CodeNotFound, code(call()), "%s %s", name, ref)
		}
	}
	_, err = admin.boxes.GetBox(ctx, req(&carrelv1.GetBoxRequest{Id: id, Org: "system"}))
	require.Equal(t, carrel.CodeNotFound, code(err), "it is not in that organisation")
	_, err = stranger.boxes.GetRun(ctx, req(&carrelv1.GetRunRequest{Id: run}))
	require.Equal(t, carrel.CodeNotFound, code(err))
	_, err = stranger.ops.GetOperation(ctx, req(&carrelv1.GetOperationRequest{Id: op}))
	require.Equal(t, carrel.CodeNotFound, code(err))
	_, err = stranger.orgs.GetOrg(ctx, req(&carrelv1.GetOrgRequest{Org: "default"}))
	require.Equal(t, carrel.CodeNotFound, code(err))
	boxes, err := stranger.boxes.ListBoxes(ctx, req(&carrelv1.ListBoxesRequest{}))
	require.NoError(t, err)
	require.Empty(t, boxes.Msg.GetBoxes())
	require.Equal(t, "RUNNING", admin.state(id), "and nothing happened to it")

	templates, err := stranger.templates.ListTemplates(ctx, req(&carrelv1.ListTemplatesRequest{}))
	require.NoError(t, err)
	require.Len(t, templates.Msg.GetTemplates(), 1, "what is shipped is for all")
	own := stranger.create("dev")
	require.NotEqual(t, id, own, "names are unique in an organisation only")
	require.Equal(t, own, stranger.get("dev").GetId())
}
