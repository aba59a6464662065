package command_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/ctl/internal/coordinatortest"
	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// procedures lets the coordinator know the procedure maintenance, whose plan is always the same.
func (d *desk) procedures() {
	d.fill()
	n := d.cluster.Nodes[0]
	stored := &coordinatorv1.StoredProcedure{
		Name: "maintenance", Version: 3, Title: "Maintenance window", Digest: "0123456789abcdef", StoredAt: ago(time.Hour), StoredBy: "user/alice",
	}
	coordinatortest.On(n, "LintProcedure", func(_ context.Context, q *coordinatorv1.LintProcedureRequest) (*coordinatorv1.LintProcedureResponse, error) {
		a := &coordinatorv1.LintProcedureResponse{}
		if bytes.Contains(q.GetSource(), []byte("stepps")) {
			a.Findings = append(a.Findings, &coordinatorv1.Finding{Code: "Y002", Severity: "error", File: q.GetFile(), Line: 2, Column: 1, Message: `a procedure has no field "stepps"; did you mean steps?`})
		}
		if bytes.Contains(q.GetSource(), []byte("verify")) {
			a.Findings = append(a.Findings, &coordinatorv1.Finding{Code: "R001", Severity: "warning", File: q.GetFile(), Line: 3, Column: 5, Message: "verify is asked once"})
		}
		return a, nil
	})
	coordinatortest.On(n, "PutProcedure", func(context.Context, *coordinatorv1.PutProcedureRequest) (*coordinatorv1.PutProcedureResponse, error) {
		return &coordinatorv1.PutProcedureResponse{Procedure: stored, Findings: []*coordinatorv1.Finding{{Code: "R001", Severity: "warning", File: "good.yaml", Line: 3, Column: 5, Message: "verify is asked once"}}}, nil
	})
	coordinatortest.On(n, "ListProcedures", func(context.Context, *coordinatorv1.ListProceduresRequest) (*coordinatorv1.ListProceduresResponse, error) {
		return &coordinatorv1.ListProceduresResponse{Procedures: []*coordinatorv1.StoredProcedure{stored}}, nil
	})
	coordinatortest.On(n, "GetProcedure", func(context.Context, *coordinatorv1.GetProcedureRequest) (*coordinatorv1.GetProcedureResponse, error) {
		return &coordinatorv1.GetProcedureResponse{Procedure: &coordinatorv1.StoredProcedure{Name: "maintenance", Source: []byte("api: procedure/v1\nname: maintenance\x1b[2J\n")}}, nil
	})
	coordinatortest.On(n, "DeleteProcedure", func(context.Context, *coordinatorv1.DeleteProcedureRequest) (*coordinatorv1.DeleteProcedureResponse, error) {
		return &coordinatorv1.DeleteProcedureResponse{}, nil
	})
	coordinatortest.On(n, "ListRuns", func(context.Context, *coordinatorv1.ListRunsRequest) (*coordinatorv1.ListRunsResponse, error) {
		return &coordinatorv1.ListRunsResponse{Runs: []*coordinatorv1.Run{
			{Id: "r-9", Procedure: "rolling-update", State: coordinatorv1.RunState_RUN_STATE_SUCCEEDED, CreatedAt: ago(time.Minute)},
			{Id: "r-8", Procedure: "maintenance", State: coordinatorv1.RunState_RUN_STATE_ROLLED_BACK, CreatedAt: ago(time.Hour), CreatedBy: "user/alice", Reason: "window", Cause: "migrate failed", StepsTotal: 9, StepsSettled: 9},
		}}, nil
	})
	coordinatortest.On(n, "StartProcedure", func(_ context.Context, q *coordinatorv1.StartProcedureRequest) (*coordinatorv1.StartProcedureResponse, error) {
		if q.GetName() != "maintenance" && len(q.GetSource()) == 0 {
			return nil, rpcerr.New(codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_PROCEDURE_NOT_FOUND, "there is no procedure %q", q.GetName())
		}
		a := &coordinatorv1.StartProcedureResponse{Warnings: []string{"it may take long"}, Plan: &coordinatorv1.Plan{
			Procedure: "maintenance", Title: "Maintenance window", Hash: "3f9c01d2ab45ffff", Locks: []string{"stack/demo"}, MaxDuration: durationpb.New(time.Hour),
			Steps: []*coordinatorv1.Step{{Id: "approve_start", Title: "Go?", Approval: &coordinatorv1.Approval{Prompt: "Go?"}}, {Id: "migrate", Title: "migrate", Host: "web-1", After: []string{"approve_start"}}},
		}}
		if !q.GetDryRun() {
			a.Run = &coordinatorv1.Run{Id: "r-a", Procedure: "maintenance", State: coordinatorv1.RunState_RUN_STATE_RUNNING, CreatedAt: ago(time.Second), StepsTotal: 2}
		}
		return a, nil
	})
}

func TestProcedureCommands(t *testing.T) {
	d := loggedIn(t, 1)
	d.procedures()
	d.file("good.yaml", "api: procedure/v1\nsteps:\n  - verify: x\n")
	d.file("bad.yaml", "api: procedure/v1\nstepps: []\n")
	golden(t, "procedure", d.transcript(
		"procedure lint good.yaml", "procedure lint good.yaml bad.yaml", "procedure lint missing.yaml", "procedure lint", "procedure put good.yaml", "procedure list",
		"procedure list -o name", "procedure show maintenance", "procedure history maintenance", "procedure history other", "procedure plan maintenance -i schema=2",
		"procedure plan ./good.yaml --detailed-exitcode -o name", "procedure plan other", "procedure run maintenance -i schema", "procedure run maintenance",
		"procedure run maintenance --yes --detach -i schema=2 -i list=a,b=c --reason window", "procedure delete maintenance", "procedure delete maintenance --yes",
	))
	calls := d.cluster.Nodes[0].Calls("StartProcedure")
	last := calls[len(calls)-1].(*coordinatorv1.StartProcedureRequest)
	if last.GetInputs()["list"] != "a,b=c" || last.GetReason() != "window" || last.GetRequestId() == "" || last.GetPlanHash() != "3f9c01d2ab45ffff" {
		t.Errorf("the run was started by %v", last)
	}
	for _, m := range calls {
		if q := m.(*coordinatorv1.StartProcedureRequest); q.GetFile() == "./good.yaml" && (q.GetName() != "" || !strings.HasPrefix(string(q.GetSource()), "api:")) {
			t.Errorf("a file was sent as %v", q)
		}
	}
}

func TestProcedureSchema(t *testing.T) {
	d := newDesk(t, 0)
	r := d.run("procedure schema")
	var schema map[string]any
	if err := json.Unmarshal([]byte(r.stdout), &schema); err != nil || r.code != 0 || schema["$defs"] == nil {
		t.Errorf("exit code %d, %v", r.code, err)
	}
	kept, err := os.ReadFile("procedure.schema.json")
	if err != nil || string(kept) != r.stdout {
		t.Errorf("what is printed is not the file: %v", err)
	}
}
