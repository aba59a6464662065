package command_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/ctl/internal/coordinatortest"
	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// operations is what a coordinator was asked to do to services.
func (d *desk) operations() []*coordinatorv1.OperateServiceRequest {
	var all []*coordinatorv1.OperateServiceRequest
	for _, m := range d.cluster.Nodes[0].Calls("OperateService") {
		all = append(all, m.(*coordinatorv1.OperateServiceRequest))
	}
	return all
}

// operator returns a desk whose coordinator plans any verb for service api of stack demo. Its instances run, so that there is nothing to start.
func operator(t *testing.T) *desk {
	t.Helper()
	d := loggedIn(t, 1)
	d.fill()
	n := d.cluster.Nodes[0]
	coordinatortest.On(n, "OperateService", func(_ context.Context, q *coordinatorv1.OperateServiceRequest) (*coordinatorv1.OperateServiceResponse, error) {
		if q.GetStack() != "demo" {
			return nil, rpcerr.New(codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_STACK_NOT_FOUND, "there is no stack %q; did you mean demo?", q.GetStack())
		}
		if q.GetService() != "api" {
			return nil, rpcerr.New(codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_SERVICE_NOT_FOUND, "stack demo has no service %q; did you mean api?", q.GetService())
		}
		verb := strings.ToLower(strings.TrimPrefix(q.GetVerb().String(), "SERVICE_VERB_"))
		p := &coordinatorv1.Plan{
			Procedure: verb, Title: verb + " demo/api", Stack: "demo", Hash: "ab12", Locks: []string{"stack/demo"}, MaxDuration: durationpb.New(time.Hour),
			Changes: []*coordinatorv1.ServiceChange{{Service: "api", Kind: coordinatorv1.ChangeKind_CHANGE_KIND_UPDATE, InstancesBefore: 2, InstancesAfter: 2, Parallelism: 1}},
			Notes:   []string{"a note on " + verb},
			Steps:   []*coordinatorv1.Step{{Id: "api.1/do", Host: "web-1", Title: verb + " demo.api.1.r2"}},
		}
		switch q.GetVerb() {
		case coordinatorv1.ServiceVerb_SERVICE_VERB_STOP:
			p.Changes[0].InstancesAfter = 0
		case coordinatorv1.ServiceVerb_SERVICE_VERB_RECREATE:
			p.Changes[0].Order = "start-first"
		case coordinatorv1.ServiceVerb_SERVICE_VERB_START:
			p.Steps, p.Changes[0].Kind, p.Notes = nil, coordinatorv1.ChangeKind_CHANGE_KIND_NONE, []string{"all of it runs"}
		}
		answer := &coordinatorv1.OperateServiceResponse{Plan: p}
		if !q.GetDryRun() && len(p.GetSteps()) > 0 {
			answer.Run = &coordinatorv1.Run{Id: "r-3", Procedure: verb, Title: p.GetTitle(), Stack: "demo", State: coordinatorv1.RunState_RUN_STATE_RUNNING, CreatedAt: ago(time.Second)}
		}
		return answer, nil
	})
	n.OnWatch(func(_ *coordinatorv1.WatchRunRequest, s watchStream) error {
		return s.Send(&coordinatorv1.WatchRunResponse{Index: 9, Run: &coordinatorv1.Run{
			Id: "r-3", Procedure: "restart", Stack: "demo", State: coordinatorv1.RunState_RUN_STATE_SUCCEEDED, StepsTotal: 1, StepsSettled: 1, CreatedAt: ago(3 * time.Second), FinishedAt: ago(0),
		}})
	})
	return d
}

func TestServiceVerbs(t *testing.T) {
	d := operator(t)
	golden(t, "verbs", d.transcript(
		"service restart demo/api", "service restart demo/api --dry-run", "service restart demo/api --dry-run -o wide", "service recreate demo/api --dry-run",
		"service stop demo/api", "service stop demo/api --yes --progress quiet", "service stop demo/api --dry-run", "service start demo/api", "service start demo/api -o json", "service reload demo/api --detach",
		"service signal demo/api", "service signal demo/api --signal USR1", "service signal demo/api --signal USR1 --plan ab12 --progress quiet", "service signal demo/api --signal USR1 --dry-run",
		"service restart demo/apo", "service restart deom/api", "service restart", "service restart demo/api --slot 0", "service restart demo/api --delay -1s", "service stop demo/api --delay 1s",
		"service restrat demo/api"))
}

func TestStoppedInstancesAreShownAsStopped(t *testing.T) {
	d := loggedIn(t, 1)
	coordinatortest.On(d.cluster.Nodes[0], "ListInstances", func(context.Context, *coordinatorv1.ListInstancesRequest) (*coordinatorv1.ListInstancesResponse, error) {
		return &coordinatorv1.ListInstancesResponse{Instances: []*coordinatorv1.Instance{
			{Stack: "demo", Service: "api", Slot: 1, Expected: true, Container: &agentv1.Container{Name: "demo.api.1.r2", State: "exited", Stopped: true}},
			{Stack: "demo", Service: "api", Slot: 2, Expected: true, Container: &agentv1.Container{Name: "demo.api.2.r2", State: "exited"}},
		}}, nil
	})
	coordinatortest.On(d.cluster.Nodes[0], "ListServices", func(context.Context, *coordinatorv1.ListServicesRequest) (*coordinatorv1.ListServicesResponse, error) {
		return &coordinatorv1.ListServicesResponse{Services: []*coordinatorv1.ServiceStatus{{Stack: "demo", Service: service("api"), Running: 1, Ready: 1, Stopped: 1, Release: 2}}}, nil
	})
	if r := d.run("service list"); !strings.Contains(r.stdout, "1/2 (1 stopped)") {
		t.Errorf("listed is\n%s", r.stdout)
	}
	if r := d.run("service show api"); !strings.Contains(r.stdout, "2 wanted, 1 running, 1 ready, 1 stopped") {
		t.Errorf("shown is\n%s", r.stdout)
	}
	r := d.run("service ps")
	rows := strings.Split(r.stdout, "\n")
	if len(rows) < 3 || !strings.Contains(rows[1], "stopped") || !strings.Contains(rows[2], "exited") {
		t.Errorf("shown is\n%s", r.stdout)
	}
}

func TestServiceVerbsAreSentAsGiven(t *testing.T) {
	d := operator(t)
	for _, test := range []struct {
		line string
		want *coordinatorv1.OperateServiceRequest
	}{
		{"service restart demo/api -y --progress quiet --slot 2,1 --slot 3 --delay 90s", &coordinatorv1.OperateServiceRequest{
			Verb: coordinatorv1.ServiceVerb_SERVICE_VERB_RESTART, Slots: []uint32{2, 1, 3}, Delay: durationpb.New(90 * time.Second),
		}},
		{"service recreate service/demo/api -y --progress quiet", &coordinatorv1.OperateServiceRequest{Verb: coordinatorv1.ServiceVerb_SERVICE_VERB_RECREATE}},
		{"service stop api --stack -y", nil},
		{"service stop demo/api -y --progress quiet --reason leaks", &coordinatorv1.OperateServiceRequest{Verb: coordinatorv1.ServiceVerb_SERVICE_VERB_STOP, Reason: "leaks"}},
		{"service reload api -y --progress quiet --signal USR2", &coordinatorv1.OperateServiceRequest{Verb: coordinatorv1.ServiceVerb_SERVICE_VERB_RELOAD, Signal: "USR2"}},
		{"service signal demo/api -y --progress quiet --signal HUP --request-id one", &coordinatorv1.OperateServiceRequest{Verb: coordinatorv1.ServiceVerb_SERVICE_VERB_SIGNAL, Signal: "HUP", RequestId: "one"}},
	} {
		before := len(d.operations())
		r := d.run(test.line)
		sent := d.operations()[before:]
		if test.want == nil {
			if r.code != 2 || len(sent) > 0 {
				t.Errorf("%s: code %d, sent %v", test.line, r.code, sent)
			}
			continue
		}
		if r.code != 0 || len(sent) != 1 {
			t.Errorf("%s: code %d, %d calls: %s", test.line, r.code, len(sent), r.stderr)
			continue
		}
		got, want := sent[0], test.want
		if got.GetStack() != "demo" || got.GetService() != "api" || got.GetVerb() != want.GetVerb() || !slices.Equal(got.GetSlots(), want.GetSlots()) ||
			got.GetDelay().AsDuration() != want.GetDelay().AsDuration() || got.GetSignal() != want.GetSignal() || got.GetReason() != want.GetReason() ||
			got.GetRequestId() == "" || want.GetRequestId() != "" && got.GetRequestId() != want.GetRequestId() || got.GetDryRun() {
			t.Errorf("%s sent %v", test.line, got)
		}
	}
}

// TestVerbStartsThePlanThatWasSeen: the plan that a person saw is the one that is started.
func TestVerbStartsThePlanThatWasSeen(t *testing.T) {
	d := operator(t)
	if r := d.run("service restart demo/api --progress plain"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	sent := d.operations()
	if len(sent) != 2 || !sent[0].GetDryRun() || sent[1].GetDryRun() || sent[1].GetPlanHash() != "ab12" || sent[0].GetPlanHash() != "" {
		t.Errorf("sent %v", sent)
	}
}

func TestServiceVerbHelp(t *testing.T) {
	d := newDesk(t, 0)
	for _, verb := range []string{"restart", "recreate", "stop", "start", "reload", "signal"} {
		r := d.run("service " + verb + " --help")
		for _, want := range []string{"musterctl service " + verb + " shop/", "--slot", "--dry-run", "--plan", "--reason"} {
			if r.code != 0 || !strings.Contains(r.stdout, want) {
				t.Errorf("the help of %s has no %q:\n%s", verb, want, r.stdout)
			}
		}
		if got, want := strings.Contains(r.stdout, "--delay"), verb == "restart" || verb == "recreate" || verb == "reload"; got != want {
			t.Errorf("the help of %s names --delay: %t", verb, got)
		}
		for line := range strings.Lines(r.stdout) {
			if len([]rune(line)) > 160 {
				t.Errorf("the help of %s has a line of %d characters", verb, len(line))
			}
		}
	}
}

func TestCompletionOfSlots(t *testing.T) {
	d := operator(t)
	r := d.run("__complete service restart demo/api --slot", "")
	if !strings.HasPrefix(r.stdout, "1\tweb-1, running\n") || strings.Contains(r.stdout, "2\t") {
		t.Errorf("completed as %q", r.stdout)
	}
	if r := d.run("__complete service restart demo/a"); !strings.HasPrefix(r.stdout, "demo/api\n") {
		t.Errorf("completed as %q", r.stdout)
	}
}
