package api_test

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// question is a procedure that asks people and does nothing else, so that it needs no host.
const question = `api: procedure/v1
name: question
title: Ask
max_duration: 2h
inputs:
  what: {type: string, required: true}
targets:
  app: {labels: {role: app}}
guard: {risk: read, locks: [thing/one]}
steps:
  - {id: ask, approve: {prompt: "${inputs.what}?", expires: 10m}}
`

// probing needs a host, and there is none.
const probing = question + "  - {id: look, on: app, use: probe.tcp, with: {address: \"a:1\"}}\n"

func TestProcedures(t *testing.T) {
	w := newWorld(t)
	procedures := coordinatorv1.NewProcedureServiceClient(w.conn)
	ctx := t.Context()

	lint, err := procedures.LintProcedure(ctx, &coordinatorv1.LintProcedureRequest{File: "q.yaml", Source: []byte(strings.Replace(question, "risk: read", "risc: read", 1))})
	if err != nil || len(lint.GetFindings()) != 2 || lint.GetFindings()[0].GetCode() != "Y005" || lint.GetFindings()[1].GetLine() != 9 {
		t.Errorf("lint: %v, %v", lint, err)
	}
	put, err := procedures.PutProcedure(ctx, &coordinatorv1.PutProcedureRequest{File: "q.yaml", Source: []byte(question), RequestId: "put-1"})
	if err != nil || put.GetProcedure().GetVersion() != 1 || put.GetProcedure().GetName() != "question" || put.GetProcedure().GetStoredBy() == "" {
		t.Fatalf("put: %v, %v", put, err)
	}
	again, err := procedures.PutProcedure(ctx, &coordinatorv1.PutProcedureRequest{File: "q.yaml", Source: []byte(question + "# more\n"), RequestId: "put-2"})
	if err != nil || again.GetProcedure().GetVersion() != 2 {
		t.Errorf("put again: %v, %v", again, err)
	}
	list, err := procedures.ListProcedures(ctx, &coordinatorv1.ListProceduresRequest{})
	if err != nil || len(list.GetProcedures()) != 1 || len(list.GetProcedures()[0].GetSource()) > 0 || list.GetProcedures()[0].GetTitle() != "Ask" {
		t.Errorf("list: %v, %v", list, err)
	}
	got, err := procedures.GetProcedure(ctx, &coordinatorv1.GetProcedureRequest{Name: "question", Stale: true})
	if err != nil || !strings.HasSuffix(string(got.GetProcedure().GetSource()), "# more\n") {
		t.Errorf("get: %v, %v", got, err)
	}
}

func TestStartProcedure(t *testing.T) {
	w := newWorld(t)
	procedures := coordinatorv1.NewProcedureServiceClient(w.conn)
	ctx := t.Context()
	if _, err := procedures.PutProcedure(ctx, &coordinatorv1.PutProcedureRequest{Source: []byte(question), RequestId: "put"}); err != nil {
		t.Fatal(err)
	}
	inputs := map[string]string{"what": "Now"}
	plan, err := procedures.StartProcedure(ctx, &coordinatorv1.StartProcedureRequest{Name: "question", Inputs: inputs, DryRun: true})
	if err != nil || plan.GetRun() != nil || plan.GetPlan().GetSteps()[0].GetApproval().GetPrompt() != "Now?" {
		t.Fatalf("plan: %v, %v", plan, err)
	}
	start := &coordinatorv1.StartProcedureRequest{Name: "question", Inputs: inputs, PlanHash: plan.GetPlan().GetHash(), RequestId: "start-1", Reason: "test"}
	started, err := procedures.StartProcedure(ctx, start)
	if err != nil || started.GetRun().GetProcedure() != "question" || started.GetRun().GetReason() != "test" {
		t.Fatalf("start: %v, %v", started, err)
	}
	if repeated, err := procedures.StartProcedure(ctx, start); err != nil || repeated.GetRun().GetId() != started.GetRun().GetId() {
		t.Errorf("the same start again: %v, %v", repeated, err)
	}
	if step := w.state.View().Step(started.GetRun().GetId(), "ask"); step.GetState() != coordinatorv1.StepState_STEP_STATE_ASKING || step.GetQuestion() != "Now?" {
		t.Errorf("the step is %v", step)
	}
	if _, err := procedures.DeleteProcedure(ctx, &coordinatorv1.DeleteProcedureRequest{Name: "question", RequestId: "delete-1"}); err != nil {
		t.Error(err)
	}
	if _, err := procedures.DeleteProcedure(ctx, &coordinatorv1.DeleteProcedureRequest{Name: "question", RequestId: "delete-1"}); err != nil {
		t.Errorf("the same delete again: %v", err)
	}
	if w.state.View().Run(started.GetRun().GetId()) == nil {
		t.Error("the run is gone with its procedure")
	}
}

func TestProcedureRefusals(t *testing.T) {
	w := newWorld(t)
	procedures := coordinatorv1.NewProcedureServiceClient(w.conn)
	if _, err := procedures.PutProcedure(t.Context(), &coordinatorv1.PutProcedureRequest{Source: []byte(question), RequestId: "put"}); err != nil {
		t.Fatal(err)
	}
	what := map[string]string{"what": "Now"}
	for name, test := range map[string]struct {
		req    *coordinatorv1.StartProcedureRequest
		code   codes.Code
		reason string
		has    string
	}{
		"no request id":     {&coordinatorv1.StartProcedureRequest{Name: "question", Inputs: what}, codes.InvalidArgument, "INVALID", "request_id"},
		"nothing":           {&coordinatorv1.StartProcedureRequest{DryRun: true}, codes.InvalidArgument, "INVALID", "source"},
		"both":              {&coordinatorv1.StartProcedureRequest{DryRun: true, Name: "question", Source: []byte("a")}, codes.InvalidArgument, "INVALID", "source"},
		"no such procedure": {&coordinatorv1.StartProcedureRequest{DryRun: true, Name: "answer"}, codes.NotFound, "PROCEDURE_NOT_FOUND", "answer"},
		"no input":          {&coordinatorv1.StartProcedureRequest{DryRun: true, Name: "question"}, codes.InvalidArgument, "INVALID", "-i what=VALUE"},
		"not a procedure":   {&coordinatorv1.StartProcedureRequest{DryRun: true, File: "a.yaml", Source: []byte("steps: 1")}, codes.InvalidArgument, "PROCEDURE_INVALID", "a.yaml:1:8"},
		"another plan":      {&coordinatorv1.StartProcedureRequest{Name: "question", Inputs: what, PlanHash: "other", RequestId: "a"}, codes.FailedPrecondition, "PLAN_CHANGED", ""},
		"no host":           {&coordinatorv1.StartProcedureRequest{DryRun: true, Source: []byte(probing), Inputs: what}, codes.FailedPrecondition, "PLACEMENT", "step look"},
		"reused request id": {&coordinatorv1.StartProcedureRequest{Name: "question", Inputs: what, RequestId: "put"}, codes.AlreadyExists, "REQUEST_REUSED", ""},
		"a file with a bad name": {
			&coordinatorv1.StartProcedureRequest{DryRun: true, File: "a\nb", Source: []byte(question), Inputs: what}, codes.InvalidArgument, "INVALID", "name",
		},
	} {
		if _, err := procedures.StartProcedure(t.Context(), test.req); status.Code(err) != test.code || rpcerr.Reason(err) != test.reason || !strings.Contains(rpcerr.Message(err), test.has) {
			t.Errorf("%s: %v, want %s with %s and %q", name, err, test.code, test.reason, test.has)
		}
	}
	_, err := procedures.PutProcedure(t.Context(), &coordinatorv1.PutProcedureRequest{File: "bad.yaml", Source: []byte("api: procedure/v1\nstepps: []\n"), RequestId: "bad"})
	found := false
	for _, detail := range status.Convert(err).Details() {
		finding, ok := detail.(*coordinatorv1.Finding)
		found = found || ok && finding.GetCode() == "Y002" && finding.GetLine() == 2
	}
	if rpcerr.Reason(err) != "PROCEDURE_INVALID" || !found {
		t.Errorf("put of a bad file: %v with %v, want its findings", err, status.Convert(err).Details())
	}
	if _, err := procedures.DeleteProcedure(t.Context(), &coordinatorv1.DeleteProcedureRequest{Name: "answer", RequestId: "b"}); rpcerr.Reason(err) != "PROCEDURE_NOT_FOUND" {
		t.Errorf("delete of none: %v", err)
	}
	if _, err := procedures.GetProcedure(t.Context(), &coordinatorv1.GetProcedureRequest{Name: "answer"}); rpcerr.Reason(err) != "PROCEDURE_NOT_FOUND" {
		t.Errorf("get of none: %v", err)
	}
}
